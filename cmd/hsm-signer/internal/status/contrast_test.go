package status

import (
	"maps"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"hsm-signer/internal/must"
)

// What WCAG 2.2 wants: of text (1.4.3), and of what else must be seen (1.4.11).
const (
	textContrast  = 4.5
	otherContrast = 3
)

// onGrounds are the pairs of colours that meet on the page: what is shown, and the grounds that it
// is shown on. Each colour that the style sheet gives to text is here.
var onGrounds = map[string][]string{
	"ink":       {"paper", "card", "well-tint", "look-tint", "bad-tint"},
	"soft":      {"paper", "card", "well-tint", "look-tint", "bad-tint"},
	"well":      {"well-tint", "card"},
	"look":      {"look-tint", "card"},
	"bad":       {"bad-tint", "card"},
	"well-tint": {"well"}, // the sign in the headline
	"look-tint": {"look"},
	"bad-tint":  {"bad"},
	// the chart, and what has the focus
	"bar": {"card", "paper", "well-tint", "look-tint", "bad-tint"},
}

// notText are colours of what is no text.
var notText = []string{"bar"}

// palettes are the colours of the style sheet, in light and in dark.
func palettes(t *testing.T) (css string, all map[string]map[string]string) {
	t.Helper()
	text, err := files.ReadFile("style.css")
	must.OK(t, err)
	css = string(text)
	roots := regexp.MustCompile(`(?s):root \{(.*?)\}`).FindAllString(css, -1)
	if len(roots) != 2 {
		t.Fatalf("%d palettes", len(roots))
	}
	all = map[string]map[string]string{"light": {}, "dark": {}}
	for i, name := range []string{"light", "dark"} {
		for _, c := range regexp.MustCompile(`--([a-z-]+): (#[0-9a-f]{6});`).
			FindAllStringSubmatch(roots[i], -1) {
			all[name][c[1]] = c[2]
		}
		css = strings.Replace(css, roots[i], "", 1)
	}
	return css, all
}

// luminance is WCAG's relative luminance of a colour #rrggbb.
func luminance(t *testing.T, colour string) float64 {
	t.Helper()
	sum := 0.0
	for i, weight := range []float64{0.2126, 0.7152, 0.0722} {
		n, err := strconv.ParseUint(colour[1+2*i:3+2*i], 16, 8)
		must.OK(t, err)
		c := float64(n) / 255
		if c <= 0.04045 {
			c /= 12.92
		} else {
			c = math.Pow((c+0.055)/1.055, 2.4)
		}
		sum += weight * c
	}
	return sum
}

// contrast is WCAG's contrast ratio of two colours, from 1 to 21.
func contrast(t *testing.T, a, b string) float64 {
	t.Helper()
	l, m := luminance(t, a), luminance(t, b)
	return (max(l, m) + 0.05) / (min(l, m) + 0.05)
}

func TestContrast(t *testing.T) {
	if c := contrast(t, "#000000", "#ffffff"); math.Abs(c-21) > 1e-9 {
		t.Fatalf("black on white: %f", c)
	}
	// the well-known one that just fails
	if c := contrast(t, "#777777", "#ffffff"); c < 4.47 || c > 4.49 {
		t.Fatalf("grey on white: %f", c)
	}
	_, all := palettes(t)
	for scheme, palette := range all {
		for shown, grounds := range onGrounds {
			least := float64(textContrast)
			if slices.Contains(notText, shown) {
				least = otherContrast
			}
			for _, ground := range grounds {
				if palette[shown] == "" || palette[ground] == "" {
					t.Errorf("%s: there is no colour %s, or no %s", scheme, shown, ground)
				} else if c := contrast(t, palette[shown], palette[ground]); c < least {
					t.Errorf("%s: %s on %s has a contrast of %.2f:1; want %g:1", scheme, shown,
						ground, c, least)
				}
			}
		}
	}
}

// All colours are of the palettes, and in a pair, so that none escapes the test of its contrast.
func TestColoursAreOfThePalette(t *testing.T) {
	css, _ := palettes(t)
	colour := regexp.MustCompile(
		`#[0-9a-fA-F]{3,8}\b|\b(?:rgb|hsl|oklch|color-mix)a?\(|opacity:`)
	if colours := colour.FindAllString(css, -1); len(colours) > 0 {
		t.Errorf("colours that are not of the palette: %v", colours)
	}
	grounds := slices.Concat(slices.Collect(maps.Values(onGrounds))...)
	for _, use := range regexp.MustCompile(`[{;\s](color|background): ([^;}]+)`).
		FindAllStringSubmatch(css, -1) {
		for _, name := range named(css, use[2]) {
			if use[1] == "color" && onGrounds[name] == nil || use[1] == "background" &&
				!slices.Contains(grounds, name) {
				t.Errorf("%s: %s is in no pair whose contrast is tested", use[1], use[2])
			}
		}
	}
}

// named are the colours of a palette that a value such as var(--soft) can be: one, or that of each
// mood.
func named(css, value string) []string {
	name := strings.TrimSuffix(strings.TrimPrefix(value, "var(--"), ")")
	switch name {
	case "inherit":
		return nil
	case "mood", "tint":
		var all []string
		for _, m := range regexp.MustCompile(`--`+name+`: var\(--([a-z-]+)\)`).
			FindAllStringSubmatch(css, -1) {
			all = append(all, m[1])
		}
		return all
	}
	return []string{name}
}
