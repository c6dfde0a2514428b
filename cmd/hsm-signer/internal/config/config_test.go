package config

import "testing"

func TestSlotsAreDecimal(t *testing.T) {
	for text, want := range map[string]uint{
		"7": 7, "010": 10, "007": 7, "0": 0, "08": 8, "0x10": 16, "0X1f": 31,
		"1932742651": 1932742651,
	} {
		var c Config
		if err := readSlot(&c, text); err != nil || *c.Token.Token.Slot != want {
			t.Errorf("%q: %v; want %d", text, err, want)
		}
	}
	for _, text := range []string{"", "0x", "0b1", "0o7", "1_0", "-1", "+1", "ff", "1e3",
		"99999999999999999999"} {
		if err := readSlot(&Config{}, text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}
