package pkcs11shim

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/pkcs11"
)

// A Call is a call of the application.
type Call struct {
	Number   uint64 // in its process, in the order in which calls started
	PID      int
	Thread   int
	Function string
	Result   uint     // CKR code; meaningless while the call hangs
	Hanging  bool     // it has not returned
	Did      []string // the actions of the rules that took effect
	// what Sign was to sign, a digest mostly; nil when it only asks for the length, or for more
	// than 128 bytes
	Signed []byte
}

// String returns the call for a test's message.
func (c Call) String() string {
	result := "hanging"
	if !c.Hanging {
		result = pkcs11.Error(c.Result).Error()
	}
	return fmt.Sprintf("%d %d %s: %s %s", c.PID, c.Number, c.Function, result,
		strings.Join(c.Did, ","))
}

// CodeName returns the name of a CKR code in the standard.
func CodeName(code uint) string {
	name := strings.TrimPrefix(pkcs11.Error(code).Error(), fmt.Sprintf("pkcs11: 0x%X: ", code))
	return cmp.Or(name, "a vendor's code")
}

// Calls are calls in the order in which they returned.
type Calls []Call

// Of returns the calls of one function.
func (c Calls) Of(function string) Calls {
	return c.filter(func(call Call) bool { return call.Function == function })
}

// By returns the calls of one process.
func (c Calls) By(pid int) Calls {
	return c.filter(func(call Call) bool { return call.PID == pid })
}

// With returns the calls that returned this CKR code.
func (c Calls) With(code uint) Calls {
	return c.filter(func(call Call) bool { return !call.Hanging && call.Result == code })
}

// Hanging returns the calls that have not returned because of a Hang rule.
func (c Calls) Hanging() Calls {
	return c.filter(func(call Call) bool { return call.Hanging })
}

// Under returns the calls on which this rule, or another of its kind, took effect.
func (c Calls) Under(r Rule) Calls {
	action, _, _ := strings.Cut(r.action, " ")
	return c.filter(func(call Call) bool {
		return (r.function == Any || r.function == call.Function) &&
			slices.Contains(call.Did, action)
	})
}

// Count returns the number of calls of the function.
func (c Calls) Count(function string) int { return len(c.Of(function)) }

// String returns a line for each call.
func (c Calls) String() string {
	var lines strings.Builder
	for _, call := range c {
		lines.WriteString(call.String() + "\n")
	}
	return lines.String()
}

func (c Calls) filter(keep func(Call) bool) Calls {
	var kept Calls
	for _, call := range c {
		if keep(call) {
			kept = append(kept, call)
		}
	}
	return kept
}

// Calls returns the logged calls of all processes since the last Forget.
func (s *Shim) Calls() (Calls, error) {
	text, err := os.ReadFile(s.logFile())
	if err != nil {
		return nil, fmt.Errorf("log of the shim: %w", err)
	}
	type key struct {
		pid    int
		number uint64
	}
	var all Calls
	hanging := map[key]int{} // index in all
	for line := range strings.Lines(string(text)) {
		call, err := parseCall(line)
		if err != nil {
			return nil, fmt.Errorf("log of the shim %s: %w", s.logFile(), err)
		}
		this := key{call.PID, call.Number}
		if index, hung := hanging[this]; hung {
			all[index] = call
			continue
		}
		if call.Hanging {
			hanging[this] = len(all)
		}
		all = append(all, call)
	}
	return all, nil
}

func parseCall(line string) (Call, error) {
	words := strings.Fields(line)
	if len(words) != 7 || !strings.HasSuffix(line, "\n") {
		return Call{}, fmt.Errorf("%q is not a call", line)
	}
	call := Call{Function: words[3], Hanging: words[4] == "hanging"}
	if words[5] != "-" {
		call.Did = strings.Split(words[5], ",")
	}
	if _, err := fmt.Sscan(strings.Join(words[:3], " "), &call.Number, &call.PID,
		&call.Thread); err != nil {
		return Call{}, fmt.Errorf("%q is not a call: %w", line, err)
	}
	if words[6] != "-" {
		signed, err := hex.DecodeString(words[6])
		if err != nil {
			return Call{}, fmt.Errorf("%q is not a call: %w", line, err)
		}
		call.Signed = signed
	}
	if call.Hanging {
		return call, nil
	}
	result, err := strconv.ParseUint(words[4], 0, 64)
	if err != nil {
		return Call{}, fmt.Errorf("%q is not a call: %w", line, err)
	}
	call.Result = uint(result)
	return call, nil
}

// Forget empties the log.
func (s *Shim) Forget() error { return os.WriteFile(s.logFile(), nil, 0o600) }
