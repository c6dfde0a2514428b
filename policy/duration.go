package policy

import (
	"fmt"
	"math"
	"regexp"
	"strings"
	"time"
)

// durationPart is a number and its unit.
var durationPart = regexp.MustCompile(`^([0-9]*\.?[0-9]*)([a-zµμ]+)`)

// ParseDuration parses a duration as [time.ParseDuration] does, and knows two more units: d is a
// day of 24 hours, and w is a week of seven days. So "30d", "2w" and "1w2d12h" are durations.
func ParseDuration(text string) (time.Duration, error) {
	sign, rest := time.Duration(1), text
	if rest != "" && strings.ContainsRune("+-", rune(rest[0])) {
		if rest[0] == '-' {
			sign = -1
		}
		rest = rest[1:]
	}
	if rest == "0" {
		return 0, nil
	}
	var sum time.Duration
	for first := true; first || rest != ""; first = false {
		part := durationPart.FindStringSubmatch(rest)
		if part == nil {
			return 0, fmt.Errorf("%q is not a duration, such as 12h, 30d or 1w2d12h", text)
		}
		d, err := parseDurationPart(part[1], part[2])
		if err != nil || d > math.MaxInt64-sum {
			return 0, fmt.Errorf("%q is not a duration, such as 12h, 30d or 1w2d12h", text)
		}
		sum, rest = sum+d, rest[len(part[0]):]
	}
	return sign * sum, nil
}

// parseDurationPart parses one number with its unit.
func parseDurationPart(number, unit string) (time.Duration, error) {
	times, isDays := map[string]time.Duration{"d": 24, "w": 7 * 24}[unit]
	if !isDays {
		return time.ParseDuration(number + unit)
	}
	d, err := time.ParseDuration(number + "h")
	if err == nil && d > math.MaxInt64/times {
		err = fmt.Errorf("%s%s is too long", number, unit)
	}
	return d * times, err
}
