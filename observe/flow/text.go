package flow

import "fmt"

var verdictTexts = map[Verdict]string{
	VerdictForwarded: "forwarded", VerdictDropped: "dropped", VerdictError: "error",
	VerdictRedirected: "redirected", VerdictTranslated: "translated",
}

var typeTexts = map[Type]string{
	TypeSocket: "socket", TypeTCP: "tcp", TypeHTTP: "http", TypeDNS: "dns", TypeLost: "lost",
}

// String returns the verdict's word, as in `sluice observe --verdict`.
func (v Verdict) String() string { return text(verdictTexts, v) }

// MarshalText returns the verdict's word.
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText parses the verdict's word.
func (v *Verdict) UnmarshalText(b []byte) error { return parse(verdictTexts, v, b, "verdict") }

// String returns the type's word.
func (t Type) String() string { return text(typeTexts, t) }

// MarshalText returns the type's word.
func (t Type) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText parses the type's word.
func (t *Type) UnmarshalText(b []byte) error { return parse(typeTexts, t, b, "type") }

// MarshalText returns the reason's word.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText parses the reason's word.
func (r *Reason) UnmarshalText(b []byte) error { return parse(reasonTexts, r, b, "reason") }

func text[T comparable](texts map[T]string, v T) string {
	if s, ok := texts[v]; ok {
		return s
	}
	return "unknown"
}

func parse[T comparable](texts map[T]string, out *T, b []byte, what string) error {
	for v, s := range texts {
		if s == string(b) {
			*out = v
			return nil
		}
	}
	return fmt.Errorf("unknown %s %q", what, b)
}
