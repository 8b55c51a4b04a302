package flow

import (
	"fmt"
	"math"
)

var verdictTexts = map[Verdict]string{
	VerdictForwarded: "forwarded", VerdictDropped: "dropped", VerdictError: "error",
	VerdictRedirected: "redirected", VerdictTranslated: "translated",
}

var typeTexts = map[Type]string{
	TypeSocket: "socket", TypeTCP: "tcp", TypeHTTP: "http", TypeDNS: "dns", TypeLost: "lost",
	TypeHealth: "health",
	TypeUDP:    "udp",
}

// unknown is the word for a number that has none.
const unknown = "unknown"

// Verdicts returns every verdict with its word.
func Verdicts() map[Verdict]string { return clone(verdictTexts) }

// Types returns every type with its word.
func Types() map[Type]string { return clone(typeTexts) }

// ParseVerdict returns the verdict of a word.
func ParseVerdict(word string) (Verdict, bool) { return parse(verdictTexts, word) }

// ParseType returns the type of a word.
func ParseType(word string) (Type, bool) { return parse(typeTexts, word) }

// Known reports whether v is one of the verdicts.
func (v Verdict) Known() bool { _, ok := verdictTexts[v]; return ok }

// Known reports whether t is one of the types.
func (t Type) Known() bool { _, ok := typeTexts[t]; return ok }

// Known reports whether r is one of the reasons, or ReasonNone.
func (r Reason) Known() bool { _, ok := reasonTexts[r]; return ok }

// String returns the verdict's word, as in `sluice observe --verdict`.
func (v Verdict) String() string { return text(verdictTexts, v) }

// MarshalText returns the verdict's word.
func (v Verdict) MarshalText() ([]byte, error) { return []byte(v.String()), nil }

// UnmarshalText parses the verdict's word. A word that this build does not know,
// from a process one version ahead, becomes a verdict that prints as "unknown".
func (v *Verdict) UnmarshalText(b []byte) error {
	return decode(verdictTexts, v, math.MaxUint8, b, "verdict")
}

// String returns the type's word.
func (t Type) String() string { return text(typeTexts, t) }

// MarshalText returns the type's word.
func (t Type) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText parses the type's word; see Verdict.UnmarshalText for others.
func (t *Type) UnmarshalText(b []byte) error {
	return decode(typeTexts, t, math.MaxUint8, b, "type")
}

// MarshalText returns the reason's word.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText parses the reason's word; see Verdict.UnmarshalText for others.
func (r *Reason) UnmarshalText(b []byte) error {
	return decode(reasonTexts, r, math.MaxUint16, b, "reason")
}

func text[T comparable](texts map[T]string, v T) string {
	if s, ok := texts[v]; ok {
		return s
	}
	return unknown
}

func parse[T comparable](texts map[T]string, word string) (T, bool) {
	for v, s := range texts {
		if s == word {
			return v, true
		}
	}
	var none T
	return none, false
}

func decode[T comparable](texts map[T]string, out *T, other T, b []byte, what string) error {
	if len(b) > 64 {
		return fmt.Errorf("a %s of %d bytes is no word", what, len(b))
	}
	v, ok := parse(texts, string(b))
	if !ok {
		v = other
	}
	*out = v
	return nil
}

func clone[T comparable](texts map[T]string) map[T]string {
	out := make(map[T]string, len(texts))
	for v, s := range texts {
		out[v] = s
	}
	return out
}
