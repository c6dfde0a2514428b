package cryptoki

import "testing"

func TestTokenMustMatchInAllThatIsGiven(t *testing.T) {
	one, two := uint(1), uint(2)
	this := TokenID{Slot: &one, Label: "ca", Serial: "s"}
	for _, c := range []struct {
		want    TokenID
		matches bool
	}{
		{TokenID{Label: "ca"}, true},
		{TokenID{Slot: &one, Label: "ca", Serial: "s"}, true},
		{TokenID{Slot: &two, Label: "ca"}, false},
		{TokenID{Label: "CA"}, false},
		{TokenID{Label: "ca", Serial: "t"}, false},
	} {
		if got := c.want.matches(this); got != c.matches {
			t.Errorf("%s: %t", c.want, got)
		}
	}
}
