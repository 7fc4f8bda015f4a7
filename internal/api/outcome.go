package api

// Outcome is how a counted request ended.
type Outcome string

// The outcomes. All except OutcomeOK, OutcomeRefused and OutcomeCut are failures of the service or of the connection.
const (
	OutcomeOK          Outcome = "ok"             // the client got the whole answer
	OutcomeRefused     Outcome = "refused"        // Ollama answered with a 4xx
	OutcomeUpstream    Outcome = "upstream_error" // Ollama failed or died
	OutcomeTimeout     Outcome = "timeout"
	OutcomeClientGone  Outcome = "client_gone"
	OutcomeCut         Outcome = "cut_by_limit" // the key used up its tokens or GPU time during the answer
	OutcomeInterrupted Outcome = "interrupted"  // the gateway was killed
)

// Outcomes lists the outcomes.
var Outcomes = []Outcome{OutcomeOK, OutcomeRefused, OutcomeUpstream, OutcomeTimeout, OutcomeClientGone, OutcomeCut, OutcomeInterrupted}
