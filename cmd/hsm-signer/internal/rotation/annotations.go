package rotation

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode"
)

// The annotations of the lease. Only the leader writes the state and the answer.
const (
	StateKey  = "hsm-signer/rotation"
	OrderKey  = "hsm-signer/rotation-wanted"
	AnswerKey = "hsm-signer/rotation-answer"
)

// NextFileLine begins the line of /readyz that says why a file of the next CA is refused.
const NextFileLine = "next CA: "

// An Order is what an operator has written into the lease for the leader.
type Order struct {
	ID       string    `json:"id"` // of its own, so that the answer can be told from others
	Step     Step      `json:"step"`
	Reason   string    `json:"reason,omitempty"`
	Force    bool      `json:"force,omitempty"`
	Journals []string  `json:"journals,omitempty"`
	DryRun   bool      `json:"dryRun,omitempty"` // only ask what is missing
	By       string    `json:"by"`
	At       time.Time `json:"at"`
}

// Wish returns what the order says.
func (o Order) Wish() Wish { return Wish{o.Step, o.Reason, o.Force, o.Journals} }

// orderAge is how old an order may become: a leader that comes late must not carry it out.
const orderAge = 10 * time.Minute

// Stale reports whether the order is too old, or from the future, to be carried out.
func (o Order) Stale(now time.Time) bool {
	return now.Sub(o.At) > orderAge || o.At.Sub(now) > orderAge
}

// An Answer is what the leader has done with an order.
type Answer struct {
	ID      string    `json:"id"` // of the order
	Phase   Phase     `json:"phase"`
	Refused string    `json:"refused,omitempty"` // why the phase stays
	At      time.Time `json:"at"`
}

// Read returns the state that the annotations hold, and the zero State if they hold none. An error
// says that the state is not one that hsm-signer writes.
func Read(annotations map[string]string) (State, error) {
	text, is := annotations[StateKey]
	if !is {
		return State{}, nil
	}
	var s State
	err := decode(text, &s)
	if err == nil {
		err = s.check()
	}
	if err != nil {
		return State{}, fmt.Errorf("the annotation %s of the lease: %w; find out who wrote it, "+
			"then run \"hsm-signer ca rotate restore\"", StateKey, err)
	}
	return s, nil
}

// ReadOrder returns the order that the annotations hold, if any.
func ReadOrder(annotations map[string]string) (o Order, is bool, err error) {
	text, is := annotations[OrderKey]
	if !is {
		return o, false, nil
	}
	err = decode(text, &o)
	switch {
	case err != nil:
	case o.ID == "" || !slices.Contains(Steps, o.Step):
		err = fmt.Errorf("the id %q or the step %q", o.ID, o.Step)
	default:
		err = CheckReason(o.Reason)
	}
	if err != nil {
		return o, true, fmt.Errorf("the annotation %s of the lease: %w", OrderKey, err)
	}
	return o, true, nil
}

// ReadAnswer returns the answer that the annotations hold, if any.
func ReadAnswer(annotations map[string]string) (a Answer, is bool) {
	text, is := annotations[AnswerKey]
	return a, is && decode(text, &a) == nil
}

// maxReason bounds what goes into annotations, Events and the journal.
const maxReason = 500

// CheckReason returns an error if the text is too long or not a line of printable text.
func CheckReason(reason string) error {
	switch {
	case len(reason) > maxReason:
		return fmt.Errorf("the reason has %d bytes; at most %d are taken", len(reason), maxReason)
	case strings.ContainsFunc(reason, func(r rune) bool { return !unicode.IsPrint(r) }):
		return errors.New("the reason has a character that cannot be printed")
	}
	return nil
}

// Encode returns the annotation of a [State], an [Order] or an [Answer].
func Encode[T State | Order | Answer](value T) string {
	text, err := json.Marshal(value)
	if err != nil { // they have only texts, numbers and times
		return ""
	}
	return string(text)
}

// decode reads JSON, and refuses unknown keys and what follows.
func decode(text string, into any) error {
	decoder := json.NewDecoder(bytes.NewReader([]byte(text)))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return fmt.Errorf("it is not the JSON that hsm-signer writes: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is text behind the JSON")
	}
	return nil
}
