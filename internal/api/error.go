package api

import (
	"errors"
	"fmt"
	"time"
)

// Code is what went wrong, for programs. server/error.go turns it into a status and a body in the caller's dialect.
type Code string

// The codes. Each refusal and each failed request carries one; they are also what the books say.
const (
	CodeBadRequest       Code = "bad_request"
	CodeUnauthorized     Code = "unauthorized"
	CodeThrottled        Code = "too_many_failures"
	CodeForbidden        Code = "forbidden"
	CodeNotFound         Code = "not_found"
	CodeMethodNotAllowed Code = "method_not_allowed"
	CodeNoWebSocket      Code = "no_websocket"
	CodeConflict         Code = "conflict"
	CodeTooLarge         Code = "too_large"
	CodeTargetTooLong    Code = "target_too_long"
	CodeHeadTooLarge     Code = "head_too_large"
	CodeUnsupported      Code = "unsupported_encoding"
	CodeSlowBody         Code = "body_timeout"
	CodeRateLimited      Code = "rate_limited"
	CodeTokenLimit       Code = "token_limit"
	CodeGPULimit         Code = "gpu_limit"
	CodeConcurrency      Code = "too_many_concurrent"
	CodeQueueFull        Code = "queue_full"
	CodeQueueTimeout     Code = "queue_timeout"
	CodeNoBackend        Code = "no_backend"
	CodeTooOld           Code = "backend_too_old"
	CodeUpstreamError    Code = "upstream_error"
	CodeUpstreamTimeout  Code = "timeout"
	CodeClientGone       Code = "client_gone"
	CodeInterrupted      Code = "interrupted"
	CodeStopping         Code = "stopping"
	CodeUnavailable      Code = "unavailable"
	CodeInternal         Code = "internal"
)

// Error is a failure with a code, a sentence for the client and a cause for the log alone.
type Error struct {
	Code    Code
	Message string
	// RetryAfter is how long the client should wait; zero says nothing.
	RetryAfter time.Duration
	// NoRetry tells SDKs not to sleep RetryAfter out (x-should-retry: false).
	NoRetry bool
	Err     error
}

// Errorf is a failure without a private cause.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Wrap is a failure with a private cause that only the log shows.
func Wrap(code Code, err error, message string) *Error {
	return &Error{Code: code, Message: message, Err: err}
}

func (e *Error) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("%s: %s: %v", e.Code, e.Message, e.Err)
	}
	return string(e.Code) + ": " + e.Message
}

func (e *Error) Unwrap() error { return e.Err }

// AsError makes any error an *Error. What is none is CodeInternal and its text stays private.
func AsError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return Wrap(CodeInternal, err, "something went wrong inside the gateway; the log has the details under this request id")
}
