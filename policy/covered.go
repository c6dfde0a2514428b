package policy

import "fmt"

// NotCovered says that a certificate was begun for the request before, and that it is not the one that is
// granted now. One request has one certificate, so this one gets none: its requester must ask anew.
type NotCovered struct{ Why string }

// NotCoveredf returns a [*NotCovered].
func NotCoveredf(format string, args ...any) *NotCovered {
	return &NotCovered{fmt.Sprintf(format, args...)}
}

// Error says why, and what to do; it is safe to show to the requester.
func (n *NotCovered) Error() string {
	return "a certificate was begun for this request before: " + n.Why + "; ask anew, in a new request"
}
