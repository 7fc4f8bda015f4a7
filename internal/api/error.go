package api

import (
	"errors"
	"fmt"
	"time"
)

// Code identifies a failure for programs. server/error.go turns it into a status and a body in the caller's dialect.
type Code string

// The codes. Each refusal and each failed request has one, also in the usage records.
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

// Error is a failure with a code, a sentence for the client and a cause that only the log contains.
type Error struct {
	Code    Code
	Message string
	// RetryAfter is how long the client should wait. Zero means unspecified.
	RetryAfter time.Duration
	// NoRetry tells SDKs not to wait for RetryAfter and retry (x-should-retry: false).
	NoRetry bool
	Err     error
}

// Errorf returns a failure without a private cause.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Wrap returns a failure with a private cause, which only the log contains.
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

// AsError converts an error to an *Error. The text of any other error becomes the private cause of a CodeInternal.
func AsError(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return Wrap(CodeInternal, err, "internal error in the gateway; the log has details under this request ID")
}
