package record_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
	"github.com/sluice-mesh/sluice/observe/record"
)

func flows() map[string]flow.Flow {
	addr := netip.MustParseAddrPort
	at := time.Unix(1700000000, 123456789).UTC()
	return map[string]flow.Flow{
		"empty": {Type: flow.TypeSocket},
		"http": {
			Time: at, Node: "n1", Type: flow.TypeHTTP, Verdict: flow.VerdictForwarded, Protocol: mesh.ProtocolTCP,
			Source:      flow.Peer{AddrPort: addr("10.77.0.4:41000"), Workload: mesh.Name{Namespace: "shop", Name: "web"}, Labels: map[string]string{"app": "web", "a": ""}},
			Destination: flow.Peer{AddrPort: addr("[fd77::5]:8080"), Service: mesh.Name{Namespace: "shop", Name: "reviews"}, Labels: map[string]string{"x": "y"}},
			Original:    addr("10.96.0.12:80"), Ingress: true, BytesIn: 1, BytesOut: math.MaxUint64, Duration: math.MaxInt64,
			HTTP: &flow.HTTP{Method: "GET", Authority: "reviews", Path: "/r/7?a=b", Proto: "HTTP/1.1", Status: 200, Route: "HTTPRoute/shop/reviews", Rule: 3, RuleName: "canary", Tries: 2, TraceID: flow.TraceID{1, 15: 2}, Mirror: true},
		},
		"grpc": {Time: at, Type: flow.TypeHTTP, Verdict: flow.VerdictError, Reason: flow.ReasonUpstreamReset, Detail: "RST_STREAM",
			HTTP: &flow.HTTP{Method: "POST", GRPC: "14"}},
		"dns": {Time: at, Type: flow.TypeDNS, Verdict: flow.VerdictForwarded, Protocol: mesh.ProtocolUDP,
			DNS: &flow.DNS{Query: "reviews.", Type: "A", RCode: "NOERROR", Answer: []string{"10.96.0.12", ""}}},
		"dns without answer": {Type: flow.TypeDNS, DNS: &flow.DNS{}},
		"mapped": {Type: flow.TypeTCP, Source: flow.Peer{AddrPort: addr("[::ffff:10.77.0.4]:1"), Service: mesh.Name{Namespace: "a", Name: "b"}},
			Destination: flow.Peer{AddrPort: netip.AddrPortFrom(netip.Addr{}, 80), Workload: mesh.Name{Namespace: "", Name: "b"}}},
		"lost": {Time: time.Unix(0, -1).UTC(), Type: flow.TypeLost, Lost: 12, LostSource: "proxy", Reason: 65535},
	}
}

func TestRoundTrip(t *testing.T) {
	var all []byte
	var names []string
	for name, f := range flows() {
		t.Run(name, func(t *testing.T) {
			b := record.Append([]byte("before"), &f)
			got, n, err := record.Decode(b[len("before"):])
			if err != nil || n != len(b)-len("before") {
				t.Fatalf("took %d of %d bytes: %v", n, len(b)-len("before"), err)
			}
			if !reflect.DeepEqual(got, f) {
				t.Errorf("got  %+v\nwant %+v", got, f)
			}
			if size, err := record.Size(b[len("before"):]); err != nil || size != n {
				t.Errorf("Size is %d, %v; want %d", size, err, n)
			}
		})
		all = record.Append(all, &f)
		names = append(names, name)
	}
	for _, name := range names {
		got, n, err := record.Decode(all)
		if err != nil || !reflect.DeepEqual(got, flows()[name]) {
			t.Fatalf("%s in a row of records: %v", name, err)
		}
		all = all[n:]
	}
	if len(all) != 0 {
		t.Errorf("%d bytes left", len(all))
	}
}

// TestShort: every beginning of a record asks for more, and nothing is taken.
func TestShort(t *testing.T) {
	f := flows()["http"]
	b := record.Append(nil, &f)
	for i := range b {
		if _, n, err := record.Decode(b[:i]); !errors.Is(err, record.ErrShort) || n != 0 {
			t.Fatalf("%d of %d bytes: took %d, %v", i, len(b), n, err)
		}
	}
}

// TestStrict: a record that is damaged is an error, not another flow.
func TestStrict(t *testing.T) {
	record2 := func(change func(body []byte) []byte) []byte {
		f := flows()["lost"]
		b := record.Append(nil, &f)
		body := change(b[4:])
		out := binary.LittleEndian.AppendUint32(nil, uint32(len(body)))
		return append(out, body...)
	}
	lostBits := binary.LittleEndian.Uint32(record2(func(b []byte) []byte { return b })[4:])
	setBits := func(b []byte, bits uint32) []byte { binary.LittleEndian.PutUint32(b, bits); return b }
	tests := map[string][]byte{
		"bytes after the end": record2(func(b []byte) []byte { return append(b, 0) }),
		"cut":                 record2(func(b []byte) []byte { return b[:len(b)-1] }),
		"no fixed fields":     record2(func(b []byte) []byte { return b[:5] }),
		"nothing":             record2(func(b []byte) []byte { return nil }),
		"unknown bit":         record2(func(b []byte) []byte { return setBits(b, lostBits|1<<31) }),
		"unknown type":        record2(func(b []byte) []byte { b[4] = 99; return b }),
		"no type":             record2(func(b []byte) []byte { b[4] = 0; return b }),
		"unknown verdict":     record2(func(b []byte) []byte { b[5] = 4; return b }),
		"zero that is there":  record2(func(b []byte) []byte { b[17] = 0; return b }),
		"longer than needed":  record2(func(b []byte) []byte { return append(append(b[:17:17], 0x8c, 0x00), b[18:]...) }),
		"too many bits":       record2(func(b []byte) []byte { return append(append(b[:17:17], bytes.Repeat([]byte{0xff}, 10)...), b[18:]...) }),
		"endless number":      record2(func(b []byte) []byte { return append(b[:17:17], bytes.Repeat([]byte{0xff}, 11)...) }),
		"text past the end":   record2(func(b []byte) []byte { b[18] = 6; return b }),
		"text above its limit": record2(func(b []byte) []byte {
			return append(append(b[:18:18], 33), strings.Repeat("x", 33)...)
		}),
	}
	labelled := flow.Flow{Type: flow.TypeTCP, Source: flow.Peer{Labels: map[string]string{"a": "1", "b": "2"}}}
	tests["labels out of order"] = bytes.Replace(record.Append(nil, &labelled), []byte("\x01a\x011\x01b"), []byte("\x01b\x011\x01a"), 1)
	tests["a label twice"] = bytes.Replace(record.Append(nil, &labelled), []byte("\x01b"), []byte("\x01a"), 1)
	for name, b := range tests {
		f, n, err := record.Decode(b)
		if err == nil || errors.Is(err, record.ErrShort) {
			t.Errorf("%s: decoded to %+v, %v", name, f, err)
		}
		if n != len(b) {
			t.Errorf("%s: the next record is at %d, want %d", name, n, len(b))
		}
		if !reflect.DeepEqual(f, flow.Flow{}) {
			t.Errorf("%s: an error with a flow: %+v", name, f)
		}
	}
	if _, n, err := record.Decode([]byte{0xff, 0xff, 0xff, 0x7f}); err == nil || n != 0 {
		t.Errorf("a record of 2 GB: took %d, %v", n, err)
	}
}

// TestLimits: what is too long is cut, and the longest record is below MaxBytes.
func TestLimits(t *testing.T) {
	long := strings.Repeat("x", 100_000)
	labels := map[string]string{long: "dropped", "": "dropped"}
	for i := range 100 {
		labels[fmt.Sprintf("%02d", i)+long[:315]] = long
	}
	name := mesh.Name{Namespace: long, Name: long}
	peer := flow.Peer{AddrPort: netip.MustParseAddrPort("[fd77::5%eth0]:65535"), Workload: name, Labels: labels, Service: name}
	answers := make([]string, 100)
	for i := range answers {
		answers[i] = long
	}
	f := flow.Flow{
		Time: time.Unix(1, 0), Node: long, Type: flow.TypeDNS, Verdict: flow.VerdictDropped, Reason: 65535, Detail: long,
		Source: peer, Destination: peer, Original: peer.AddrPort, BytesIn: math.MaxUint64, BytesOut: math.MaxUint64, Duration: -1,
		HTTP: &flow.HTTP{Method: long, Authority: long, Path: long, Proto: long, Status: 5000, GRPC: long, Route: long, Rule: 1 << 30, Tries: -1},
		DNS:  &flow.DNS{Query: long, Type: long, RCode: long, Answer: answers}, Lost: math.MaxUint64, LostSource: long,
	}
	b := record.Append(nil, &f)
	if len(b) > record.MaxBytes {
		t.Fatalf("a record of %d bytes, the limit is %d", len(b), record.MaxBytes)
	}
	got, _, err := record.Decode(b)
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Repeat("x", 1021) + "…"; got.HTTP.Path != want {
		t.Errorf("a long path became %q", got.HTTP.Path)
	}
	if got.HTTP.Status != 999 || got.HTTP.Rule != 65535 || got.HTTP.Tries != 0 || got.Duration != 0 ||
		len(got.Source.Labels) != 32 || len(got.DNS.Answer) != 16 || got.Source.AddrPort.Addr().Zone() != "" {
		t.Errorf("got %+v", got)
	}
	if _, kept := got.Source.Labels["00"+long[:315]]; !kept {
		t.Error("the first label is not kept")
	}
}

func TestAppendDoesNotAllocate(t *testing.T) {
	f := flows()["http"]
	f.Source.Labels, f.Destination.Labels = nil, nil
	buf := make([]byte, 0, record.MaxBytes)
	if n := testing.AllocsPerRun(100, func() { buf = record.Append(buf[:0], &f) }); n != 0 {
		t.Errorf("Append allocates %v times", n)
	}
	t.Logf("a request has %d bytes", len(buf))
}

// FuzzDecode: what decodes encodes to the same bytes, so that a flow has one form.
func FuzzDecode(f *testing.F) {
	for _, fl := range flows() {
		f.Add(record.Append(nil, &fl))
	}
	f.Add([]byte{0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		fl, n, err := record.Decode(b)
		if err != nil {
			return
		}
		if again := record.Append(nil, &fl); !bytes.Equal(again, b[:n]) {
			t.Errorf("%x decodes to %+v, which encodes to %x", b[:n], fl, again)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	f := flows()["http"]
	f.Source.Labels, f.Destination.Labels = nil, nil
	buf := make([]byte, 0, record.MaxBytes)
	b.ReportAllocs()
	for b.Loop() {
		buf = record.Append(buf[:0], &f)
	}
}

func BenchmarkDecode(b *testing.B) {
	f := flows()["http"]
	f.Source.Labels, f.Destination.Labels = nil, nil
	buf := record.Append(nil, &f)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := record.Decode(buf); err != nil {
			b.Fatal(err)
		}
	}
}
