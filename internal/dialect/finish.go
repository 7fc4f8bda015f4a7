package dialect

import (
	"bytes"
	"encoding/json"
)

// ending has the fields in which the dialects say why a model stopped.
type ending struct {
	DoneReason string `json:"done_reason"`
	Choices    []struct {
		FinishReason string `json:"finish_reason"`
	}
	StopReason string `json:"stop_reason"`
	Delta      struct {
		StopReason string `json:"stop_reason"`
	}
	Object   string
	Status   string
	Details  details `json:"incomplete_details"`
	Response struct {
		Status  string
		Details details `json:"incomplete_details"`
	}
}

type details struct{ Reason string }

// reasons are the known values of these fields in the dialects. Other values may have any content.
var reasons = map[string]bool{
	"stop": true, "length": true, "load": true, "unload": true, "tool_calls": true, "function_call": true, "content_filter": true,
	"end_turn": true, "max_tokens": true, "stop_sequence": true, "tool_use": true, "refusal": true,
	"completed": true, "incomplete": true, "failed": true, "max_output_tokens": true,
}

// FinishReason returns why the model stopped, from a whole answer or from the last records of a stream, or "" if they do not say.
func FinishReason(end []byte) string {
	if reason := finishReasonOf(end); reason != "" {
		return reason
	}
	for line := range bytes.Lines(end) {
		if reason := finishReasonOf(bytes.TrimPrefix(line, dataPrefix)); reason != "" {
			return reason
		}
	}
	return ""
}

func finishReasonOf(record []byte) string {
	var e ending
	if record = bytes.TrimSpace(record); len(record) == 0 || record[0] != '{' {
		return ""
	}
	_ = json.Unmarshal(record, &e) // a field of another type is ignored, and the other fields are read
	candidates := []string{e.DoneReason, e.StopReason, e.Delta.StopReason, e.Response.Details.Reason, e.Response.Status}
	if len(e.Choices) > 0 {
		candidates = append(candidates, e.Choices[0].FinishReason)
	}
	if e.Object == "response" {
		candidates = append(candidates, e.Details.Reason, e.Status)
	}
	for _, reason := range candidates {
		if reasons[reason] {
			return reason
		}
	}
	return ""
}
