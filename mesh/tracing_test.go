package mesh

import "testing"

func TestParsePercentage(t *testing.T) {
	for text, want := range map[string]PerMillion{
		"0": 0, "1": 10_000, "100": AllPerMillion, "100%": AllPerMillion, "0.0001": 1, "12.5": 125_000, "99.9999%": 999_999, ".5": 5_000,
	} {
		if got, err := ParsePercentage(text); err != nil || got != want {
			t.Errorf("%q is %d (%v), want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "%", "-1", "+1", "101", "100.0001", "0.00001", "1e1", "0x1", "ten", "NaN", "Inf", "1 ", "1.2.3", "1%%"} {
		if got, err := ParsePercentage(text); err == nil {
			t.Errorf("%q is %d, want an error", text, got)
		}
	}
}
