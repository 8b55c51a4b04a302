package flow_test

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// TestJSON holds the names of the fields, which people's scripts depend on.
func TestJSON(t *testing.T) {
	f := flow.Flow{
		Time: time.Date(2026, 1, 2, 20, 31, 7, 123e6, time.UTC), Node: "n1", Type: flow.TypeHTTP,
		Verdict: flow.VerdictError, Reason: flow.ReasonUpstreamReset, Detail: "ECONNRESET",
		Source:      flow.Peer{AddrPort: netip.MustParseAddrPort("10.77.0.4:41000"), Workload: mesh.Name{Namespace: "shop", Name: "web"}, Labels: map[string]string{"app": "web"}},
		Destination: flow.Peer{AddrPort: netip.MustParseAddrPort("[fd77::5]:8080"), Service: mesh.Name{Namespace: "shop", Name: "reviews"}},
		Protocol:    mesh.ProtocolTCP, Original: netip.MustParseAddrPort("10.96.0.12:80"), Ingress: true,
		BytesIn: 1, BytesOut: 2, Duration: 3200 * time.Microsecond,
		HTTP: &flow.HTTP{Method: "GET", Authority: "reviews", Path: "/reviews/7", Proto: "HTTP/1.1", Status: 502, Route: "HTTPRoute/shop/reviews", Rule: 1, Tries: 2},
	}
	b, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"time":"2026-01-02T20:31:07.123Z","node":"n1","type":"http","verdict":"error","reason":"upstream-reset","detail":"ECONNRESET",` +
		`"source":{"address":"10.77.0.4:41000","workload":"shop/web","labels":{"app":"web"}},` +
		`"destination":{"address":"[fd77::5]:8080","service":"shop/reviews"},"protocol":"TCP","original":"10.96.0.12:80","ingress":true,` +
		`"bytes_in":1,"bytes_out":2,"duration_ns":3200000,` +
		`"http":{"method":"GET","authority":"reviews","path":"/reviews/7","proto":"HTTP/1.1","status":502,"route":"HTTPRoute/shop/reviews","rule":1,"tries":2}}`
	if string(b) != want {
		t.Errorf("got  %s\nwant %s", b, want)
	}
	var back flow.Flow
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(back, f) {
		t.Errorf("came back as %+v", back)
	}
}

// TestJSONOfLost: a record without a verdict must survive its own JSON.
func TestJSONOfLost(t *testing.T) {
	f := flow.Flow{Time: time.Unix(1, 0).UTC(), Type: flow.TypeLost, Lost: 7, LostSource: "kernel"}
	b, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"time":"1970-01-01T00:00:01Z","type":"lost","lost":7,"lost_source":"kernel"}`; string(b) != want {
		t.Errorf("got %s, want %s", b, want)
	}
	var back flow.Flow
	if err := json.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(back, f) {
		t.Errorf("came back as %+v, %v", back, err)
	}
}

// TestWords: every word is unique and parses to what it came from.
func TestWords(t *testing.T) {
	for v, word := range flow.Verdicts() {
		if got, ok := flow.ParseVerdict(word); !ok || got != v || v.String() != word || !v.Known() {
			t.Errorf("verdict %d is %q, which is %d", v, word, got)
		}
	}
	for v, word := range flow.Types() {
		if got, ok := flow.ParseType(word); !ok || got != v || v.String() != word || !v.Known() {
			t.Errorf("type %d is %q, which is %d", v, word, got)
		}
	}
	for v, word := range flow.Reasons() {
		if got, ok := flow.ParseReason(word); !ok || got != v || v.String() != word {
			t.Errorf("reason %d is %q, which is %d", v, word, got)
		}
		if strings.Trim(word, "abcdefghijklmnopqrstuvwxyz-") != "" {
			t.Errorf("reason %q is not one word", word)
		}
	}
}

// TestWordsOfANewerVersion: they are shown as unknown, not refused.
func TestWordsOfANewerVersion(t *testing.T) {
	var f flow.Flow
	if err := json.Unmarshal([]byte(`{"type":"quic","verdict":"audited","reason":"moon-phase"}`), &f); err != nil {
		t.Fatal(err)
	}
	if f.Type.String() != "unknown" || f.Verdict.String() != "unknown" || f.Reason.String() != "unknown" || f.Type.Known() || f.Verdict.Known() {
		t.Errorf("got %v %v %v", f.Type, f.Verdict, f.Reason)
	}
	if err := json.Unmarshal([]byte(`{"type":"`+strings.Repeat("x", 65)+`"}`), &f); err == nil {
		t.Error("a word of 65 bytes was taken")
	}
}
