package trace

import (
	"bytes"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/mesh"
)

const valid = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// TestParse has the cases of the W3C test suite (w3c/trace-context, test/test.py) that
// concern one traceparent field.
func TestParse(t *testing.T) {
	for value, want := range map[string]bool{
		valid: true,
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00":                              true,
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff":                              true,
		"cc-12345678901234567890123456789012-1234567890123456-01":                              true,
		valid[:2] + "x" + valid[3:]:                                                            false,
		"cc-12345678901234567890123456789012-1234567890123456-01-what-the-future-will-be-like": true,
		"cc-12345678901234567890123456789012-1234567890123456-01.what-the-future-will-be-like": false,
		"cc-12345678901234567890123456789012-1234567890123456-01x":                             false,
		valid + "-":     false,
		valid + ".":     false,
		valid + "-more": false,
		"ff-12345678901234567890123456789012-1234567890123456-01":  false,
		".0-12345678901234567890123456789012-1234567890123456-01":  false,
		"0.-12345678901234567890123456789012-1234567890123456-01":  false,
		"00-00000000000000000000000000000000-1234567890123456-01":  false,
		"00-12345678901234567890123456789012-0000000000000000-01":  false,
		"00-.2345678901234567890123456789012-1234567890123456-01":  false,
		"00-1234567890123456789012345678901.-1234567890123456-01":  false,
		"00-12345678901234567890123456789012-.234567890123456-01":  false,
		"00-12345678901234567890123456789012-123456789012345.-01":  false,
		"00-12345678901234567890123456789012-1234567890123456-.0":  false,
		"00-12345678901234567890123456789012-1234567890123456-0.":  false,
		"00-1234567890123456789012345678901-1234567890123456-01":   false,
		"00-123456789012345678901234567890123-1234567890123456-01": false,
		"00-12345678901234567890123456789012-123456789012345-01":   false,
		"00-12345678901234567890123456789012-12345678901234567-01": false,
		"00-12345678901234567890123456789012-1234567890123456-1":   false,
		"00-12345678901234567890123456789012-1234567890123456-001": false,
		strings.ToUpper(valid): false,
		" " + valid:            false,
		valid + " ":            false,
		"":                     false,
	} {
		if _, ok := Parse([]byte(value)); ok != want {
			t.Errorf("%q: %v, want %v", value, ok, want)
		}
	}
	c, _ := Parse([]byte(valid))
	if got := string(c.Append(nil)); got != valid || !c.Sampled() {
		t.Errorf("written again: %s, sampled %v", got, c.Sampled())
	}
	if c, _ := Parse([]byte("cc-12345678901234567890123456789012-1234567890123456-ff-later")); string(c.Append(nil)) != "00-12345678901234567890123456789012-1234567890123456-03" {
		t.Errorf("of a later version: %s, want version 00 with the flags of it", c.Append(nil))
	}
	parent := c.Append(nil)
	PutSpan(parent, SpanID{1, 2, 3, 4, 5, 6, 7, 0xff})
	if string(parent) != "00-0af7651916cd43dd8448eb211c80319c-01020304050607ff-01" {
		t.Errorf("with another span: %s", parent)
	}
}

func head(fields ...string) *message.Head {
	h := &message.Head{}
	for i := 0; i < len(fields); i += 2 {
		h.Add([]byte(fields[i]), []byte(fields[i+1]))
	}
	return h
}

func TestFromHead(t *testing.T) {
	if _, ok := FromHead(head("a", "b", FieldParent, valid, "c", "d")); !ok {
		t.Error("one traceparent is not found")
	}
	if _, ok := FromHead(head("traceparen", valid, "tracestate", valid)); ok {
		t.Error("another field is taken for traceparent")
	}
	if _, ok := FromHead(head(FieldParent, valid, FieldParent, valid)); ok {
		t.Error("of two traceparent fields one is taken")
	}
	if _, ok := FromHead(head(FieldParent, valid, FieldParent, "no")); ok {
		t.Error("of a good and a bad traceparent field the good one is taken")
	}
}

func TestValidState(t *testing.T) {
	many := strings.Repeat("a=1,", 31) + "b=2"
	for value, want := range map[string]bool{
		"":                              true,
		"foo=1":                         true,
		"foo=1,bar=2":                   true,
		"foo=1 , \t bar=2":              true,
		"foo=1,,bar=2,":                 true,
		"fw529a3039@dt=FfeYGvI2ZQ":      true,
		"0tenant@sys=x y":               true,
		many:                            true,
		many + ",c=3":                   false,
		"foo":                           false,
		"foo=":                          false,
		"=1":                            false,
		"Foo=1":                         false,
		"foo =1":                        false,
		"foo=1=2":                       false,
		"foo=\x01":                      false,
		"foo=ü":                         false,
		"_foo=1":                        false,
		strings.Repeat("k", 256) + "=1": true,
		strings.Repeat("k", 257) + "=1": false,
		"k=" + strings.Repeat("v", 256): true,
		"k=" + strings.Repeat("v", 257): false,
	} {
		if got := ValidState(head(FieldState, value)); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
	if ValidState(head(FieldState, many, FieldState, "c=3")) {
		t.Error("33 members in two fields are valid")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(valid))
	f.Add([]byte("cc-12345678901234567890123456789012-1234567890123456-01-x"))
	f.Fuzz(func(t *testing.T, value []byte) {
		c, ok := Parse(value)
		if !ok {
			return
		}
		if c.Trace.IsZero() || c.Span == (SpanID{}) {
			t.Fatalf("%q has an invalid identifier", value)
		}
		again, ok := Parse(c.Append(nil))
		if !ok || again != c {
			t.Fatalf("%q is %+v, and written again %+v", value, c, again)
		}
		if !bytes.Equal(c.Append(nil)[3:53], value[3:53]) {
			t.Fatalf("%q became %q", value, c.Append(nil))
		}
	})
}

func FuzzState(f *testing.F) {
	f.Add([]byte("foo=1,bar=2"), []byte("a@b=c"))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		if ValidState(head(FieldState, string(one), FieldState, string(two))) {
			// What is valid in two fields is in one (RFC 9110 §5.3).
			if !ValidState(head(FieldState, string(one)+","+string(two))) {
				t.Fatalf("%q and %q are valid apart only", one, two)
			}
		}
	})
}

// TestSampling: the share holds, is decided by the identifier alone, and a smaller
// share is part of a greater one.
func TestSampling(t *testing.T) {
	const n = 200_000
	for _, share := range []mesh.PerMillion{0, 1000, 10_000, 250_000, 999_000, mesh.AllPerMillion} {
		sampled := 0
		for i := range uint64(n) {
			// Identifiers that are spread evenly over the bits that decide.
			var id ID
			put64(id[8:], i*(1<<randomBits/n))
			id[0] = 1
			if Sampled(share, id) {
				sampled++
				if !Sampled(min(share+1000, mesh.AllPerMillion), id) {
					t.Fatalf("%s is of the share %d and not of a greater one", id, share)
				}
			}
			id[0], id[8] = 7, 9
			if i%1000 == 0 && Sampled(share, id) != Sampled(share, ID{8: id[8], 9: id[9], 10: id[10], 11: id[11], 12: id[12], 13: id[13], 14: id[14], 15: id[15]}) {
				t.Fatal("other bits than the last 56 decide")
			}
		}
		want := int(uint64(n) * uint64(share) / uint64(mesh.AllPerMillion))
		if diff := sampled - want; diff < -1 || diff > 1 {
			t.Errorf("share %d: %d of %d, want %d", share, sampled, n, want)
		}
	}
}

func TestDecide(t *testing.T) {
	parent, _ := Parse([]byte(valid))
	c, d := Decide(parent, true, 0)
	if d != Record || c.Trace != parent.Trace || c.Span == parent.Span {
		t.Errorf("a caller that records: %v, %+v", d, c)
	}
	parent.Flags = 0
	if c, d := Decide(parent, true, mesh.AllPerMillion); d != Leave || c != parent {
		t.Errorf("a caller that does not record: %v, %+v", d, c)
	}
	if _, d := Decide(Context{}, false, 0); d != Leave {
		t.Errorf("no caller, no share: %v", d)
	}
	if c, d := Decide(Context{}, false, mesh.AllPerMillion); d != Record || !c.Sampled() || c.Flags&flagRandom == 0 {
		t.Errorf("no caller, all: %v, %+v", d, c)
	}
	if c, d := Decide(Context{}, false, 1); d != Start || c.Sampled() || c.Trace.IsZero() {
		t.Errorf("no caller, one in a million: %v, %+v", d, c)
	}
}

// TestCost: a request that is not recorded costs no memory, whatever its fields say.
func TestCost(t *testing.T) {
	tracer := &Tracer{sampling: 1}
	buf := make([]byte, 0, 64)
	for name, h := range map[string]*message.Head{
		"no parent":  head("a", "b", "user-agent", "x"),
		"unsampled":  head(FieldParent, valid[:54]+"0", FieldState, "a=b"),
		"malformed":  head(FieldParent, "00-", FieldState, "a=b"),
		"two fields": head(FieldParent, valid, FieldParent, valid),
	} {
		allocs := testing.AllocsPerRun(1000, func() {
			c, decision, r := tracer.Begin(h, 0, nil)
			if decision == Record && r == nil {
				t.Fatal("recorded without a record")
			}
			buf = c.Append(buf[:0])
		})
		if allocs != 0 {
			t.Errorf("%s: %v allocations", name, allocs)
		}
	}
}
