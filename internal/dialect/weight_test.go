package dialect

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
)

// The weights compared with two real tokenizers: those of Llama 3.2 and Gemma 2, which Ollama 0.6.5 has in its own tests.
func TestWeightsFitRealTokenizers(t *testing.T) {
	for _, c := range []struct {
		text         string
		llama, gemma int64
	}{
		{`Happy families are all alike; every unhappy family is unhappy in its own way. Everything was in confusion in the house of the family.`, 27, 27},
		{`The gateway refuses a body with two spellings of one field, because a server could read another one than it has checked.`, 25, 24},
		{`func (s *Server) infer(x *exchange) error { if err := s.eligible(x); err != nil { return err }; defer taken.Done() }`, 34, 36},
		{`{"model":"tiny","messages":[{"role":"user","content":"hello"}],"options":{"num_predict":20,"temperature":0.5}}`, 29, 32},
		{`Die Bundesregierung hat beschlossen, die Geschwindigkeit auf den Autobahnen zu begrenzen, um die Umwelt zu schonen.`, 32, 23},
		{`我们今天去公园散步,天气非常好。他说这个问题需要仔细研究才能得出结论。`, 26, 19},
		{`Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.`, 29, 24},
		{`hsreltpusctapirhgwprrpmuehueqmxavycfysbjyaiptxmwznmxzsoeldbepgivnyujnqmslrsnshkvaitvwfwkrssdwugusijdcpupclzcneajnyndbtty`, 63, 58},
		{`mw riqhbja dtr gn tiewbk lemmoqm tzq nuxwhj iqjrkazn amtsueb olvltwi asbvaliuo stkflf yltijzm yas jqhu hkfvnu dtk vhozfck soihz bqg zsfikzu`, 66, 63},
		{`CZTLSENJQZIOLUNJNSNBNEGAPTQNRWHBXOYVXQJRKHCSJDZHBBZWQGNSBAPXDFQJHVAQRNBTDKEIRPZZBLHGDRDFHZIZEAPUSMBYIHITQQNBPKYABYEBDBCP`, 70, 64},
		{`el+OuOjSXXMUHyQ2pqaWkwfV6Wf3gV/O116cFBIj2C2qdPVHp7pWnOna8sEXflmWwdRpdo9KMleEnmhPxjExF6YGVYS1kWE0u19tZtum/94xrIzsODL0IBNc`, 85, 81},
		{`8fc65b7af4df6e0f2c1e77268768451851a5d2232891bea00aadcf26fc4a382d3e83bbe983a3fb19545be334ad95ef95235cb388c141f87bace2bf34`, 66, 101},
		{`491191239662992638829234540766589478470930137287338308719422719005938178055552190153136375106132677186374077672704557859`, 40, 120},
		{`.)!{(*{-&}:=('(!'>.<'@!&%?':;'#|!.:,/#]]#).#.;!~))%.;(',?%-%?#{^+*{:{+;)=*!|,@-,$#[/$>?!%![$!'<#;#(@<~,(~_;,{;-[#.+_?@.$`, 80, 72},
		{`ńęŦśćżśżóżÆĐŊśęŦØŦØśŦżóŊęóĐśźłźĐØźóńŦężØĐÅŊØØśźąęęØĐąŦźćĐØÆÆ`, 66, 56},
		{`🤣🔥🪿😀😀🎉🎉🔥🔥😀🤣🪿✨🤣🔥🫨🤣🎉🤣🪿🪿😀🙏🙏😀🤣🪿🫨🪿🪿`, 84, 55},
		{`√√∑√∠∝∏∠√∠∉∗∈∝∂∀∠∂∝∀∂∉∋∂∂∗∑∉∞∝∂∞∗∠∞∟∏∑∝∞`, 69, 40},
	} {
		var body bytes.Buffer
		to := json.NewEncoder(&body)
		to.SetEscapeHTML(false)
		if err := to.Encode(map[string]string{"model": "tiny", "prompt": c.text}); err != nil {
			t.Fatal(err)
		}
		req, err := Generate.Read(BodyOf(body.Bytes()), &Terms{})
		if err != nil {
			t.Fatal(err)
		}
		real, got := max(c.llama, c.gemma), req.Prompt
		// The charge for a request that was left adds an eighth.
		if got.Likely*9/8 < real*95/100 || got.Likely > real*22/10+2 || got.Text < real || got.Most < got.Text || int(got.Text) > len(c.text) {
			t.Errorf("%q of %d tokens: got likely %d and at most %d; got a text of %d bytes, want %d", c.text, real, got.Likely, got.Most, got.Text, len(c.text))
		}
	}
}

// When a template prints a client's own data, the text is longer than what was sent. Text without its escapes is shorter.
func TestDataIsWeighedAsItIsPrinted(t *testing.T) {
	extent := func(format string, args ...any) Extent {
		t.Helper()
		req, err := Chat.Read(BodyOf(fmt.Appendf(nil, `{"model":"tiny","messages":[`+format+`]}`, args...)), &Terms{})
		if err != nil {
			t.Fatal(err)
		}
		return req.Prompt
	}
	call := `{"role":"assistant","content":"","tool_calls":[{"function":{"name":"f","arguments":{"a":%s}}}]}`
	plain := extent(call, `"`+strings.Repeat("a", 100)+`"`)
	for name, c := range map[string]struct {
		arguments string
		bytes     int // that Go's JSON makes of them
	}{
		"HTML":    {`"` + strings.Repeat("<", 100) + `"`, 600},
		"numbers": {"[" + strings.Repeat("1e20,", 99) + "1e20]", 100*21 + 99},
		"escapes": {`"` + strings.Repeat(`\u0001`, 100) + `"`, 600},
	} {
		if got := extent(call, c.arguments); got.Text < int64(c.bytes) || got.Text > int64(c.bytes)*13/10 || got.Likely <= plain.Likely {
			t.Errorf("%s: got a text of %d bytes, likely %d tokens; want %d bytes and more than %d tokens", name, got.Text, got.Likely, c.bytes, plain.Likely)
		}
	}
	message := `{"role":"user","content":"%s"}`
	if got, want := extent(message, strings.Repeat(`\u4e2d`, 100)).Text, int64(300); got != want {
		t.Errorf("100 escaped characters of text: got %d bytes, want %d", got, want)
	}
	if got := extent(message, strings.Repeat(`\n`, 100)).Text; got != 100 {
		t.Errorf("100 line ends: got %d bytes, want 100", got)
	}
}
