// Package strictyaml decodes YAML that people write by hand: policies, tests of policies, profiles
// of a CA.
//
// Duty: decode one document, and refuse what would otherwise be ignored silently: unknown keys, a
// second document, an empty file.
//
// Contract: [Decode] decodes what it can, and its error tells every mistake that it found.
package strictyaml

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Why a text is refused, in addition to [Mistakes].
var (
	ErrEmpty     = errors.New("it is empty")
	ErrDocuments = errors.New("it holds more than one YAML document; write one")
)

// Mistakes are keys that are unknown, and values of a wrong type, each with its line.
type Mistakes []string

func (m Mistakes) Error() string { return strings.Join(m, "; ") }

var unknownKey = regexp.MustCompile(`field (\S+) not found in type \S+`)

// Decode decodes the text. The error wraps [ErrEmpty], [ErrDocuments] or [Mistakes]; any other says
// that the text is not YAML. After Mistakes and ErrDocuments the value holds what could be decoded.
func Decode(text []byte, into any) error {
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	decoder.KnownFields(true)
	err := decoder.Decode(into)
	var wrong *yaml.TypeError
	switch {
	case errors.Is(err, io.EOF):
		return ErrEmpty
	case errors.As(err, &wrong):
		var mistakes Mistakes
		for _, message := range wrong.Errors {
			mistakes = append(mistakes, unknownKey.ReplaceAllString(message, `unknown key "$1"`))
		}
		err = mistakes
	case err != nil:
		return fmt.Errorf("it is not YAML: %w", err)
	}
	if !errors.Is(decoder.Decode(new(yaml.Node)), io.EOF) {
		err = errors.Join(err, ErrDocuments)
	}
	return err
}
