package setting

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"hsm-signer/policy"
)

// OneOf returns an error if the value is none of at least two choices.
func OneOf(value string, choices ...string) error {
	last := len(choices) - 1
	switch {
	case slices.Contains(choices, value):
		return nil
	case last == 1:
		return fmt.Errorf("%q is neither %s nor %s", value, choices[0], choices[1])
	}
	return fmt.Errorf("%q is not one of %s and %s", value, strings.Join(choices[:last], ", "),
		choices[last])
}

// Bool reads true or false.
func Bool(v string, to *bool) error {
	*to = v == "true"
	return OneOf(v, "true", "false")
}

// Count reads a number from least to most.
func Count(v string, least, most int, to *int) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < least || n > most {
		return fmt.Errorf("%q is not a number from %d to %d", v, least, most)
	}
	*to = n
	return nil
}

// Duration reads a duration of at the least one, in which days and weeks may be written.
func Duration(v string, least time.Duration, to *time.Duration) error {
	d, err := policy.ParseDuration(v)
	if err != nil || d < least {
		return fmt.Errorf("%q is not a duration of at least %s, such as 10s, 12h or 30d", v, least)
	}
	*to = d
	return nil
}

// Address reads a HOST:PORT.
func Address(v string, to *string) error {
	if _, _, err := net.SplitHostPort(v); err != nil {
		return fmt.Errorf("%q is not HOST:PORT, such as 127.0.0.1:8080", v)
	}
	*to = v
	return nil
}
