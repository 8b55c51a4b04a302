package accesslog

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/observe/flow"
)

func requestHead() *message.Head {
	h := &message.Head{}
	h.Add([]byte("user-agent"), []byte("curl \"x\"\n"))
	h.Add([]byte("authorization"), []byte("Bearer SECRET"))
	h.Add([]byte("cookie"), []byte("id=SECRET"))
	return h
}

func TestChosenFields(t *testing.T) {
	f := exchange()
	f.HTTP.RuleName, f.HTTP.Mirror, f.HTTP.TraceID = "canary", true, flow.TraceID{0xab, 15: 1}
	for _, test := range []struct {
		o    Options
		want string
	}{
		{Options{Format: JSON, Fields: []string{"status", "path_only", "duration_ms", "header.user-agent", "header.accept", "rule_name", "trace_id", "query"}},
			`{"status":404,"path_only":"/a","duration_ms":1.235,"header.user-agent":"curl \"x\"\u000a","rule_name":"canary","trace_id":"ab000000000000000000000000000001"}`},
		{Options{Format: JSON, Fields: []string{"query"}}, `{}`},
		{Options{Format: Text, Fields: []string{"status", "method", "source", "destination_service", "verdict", "reason", "time", "header.user-agent"}},
			`status=404 method="GET" source=10.0.0.1:40000 destination_service=shop/api verdict=dropped reason=no-route time=2030-01-02T03:04:05.0000006Z header.user-agent="curl \"x\"\x0a"`},
		{Options{Format: Text, Template: "{{{status}} {method} -> {destination} {query} {header.user-agent} {trace_id} end"},
			`{404} "GET" -> [fd00::2]:8080 - "curl \"x\"\x0a" ab000000000000000000000000000001 end`},
	} {
		l, err := test.o.compile()
		if err != nil {
			t.Fatal(err)
		}
		if got := string(l.append(nil, f, requestHead())); got != test.want+"\n" {
			t.Errorf("got\n%s, want\n%s", got, test.want)
		}
		if got := string(l.append(nil, f, nil)); strings.Contains(got, "curl") {
			t.Errorf("of no request: %s", got)
		}
	}
	// Everything that can be named is written when there is it.
	l, err := Options{Format: JSON, Fields: Fields()}.compile()
	if err != nil {
		t.Fatal(err)
	}
	query := &flow.Flow{DNS: &flow.DNS{Query: "q", Type: "A", RCode: "NOERROR", Answer: []string{"a"}}, Lost: 1, LostSource: "proxy"}
	got := string(l.append(l.append(nil, f, nil), query, nil))
	for _, name := range Fields() {
		if !strings.Contains(got, `"`+name+`":`) {
			t.Errorf("%s is not written: %s", name, got)
		}
	}
}

// TestWrongOptions: what cannot be right is said at the start, with the cure.
func TestWrongOptions(t *testing.T) {
	for want, o := range map[string]Options{
		"neither JSON nor text":       {},
		`unknown field "statuss"`:     {Format: JSON, Fields: []string{"statuss"}},
		"named twice":                 {Format: JSON, Fields: []string{"status", "status"}},
		"lower case":                  {Format: JSON, Fields: []string{"header.User-Agent"}},
		"want header. and":            {Format: JSON, Fields: []string{"header."}},
		`"authorization" holds`:       {Format: JSON, Fields: []string{"header.authorization"}},
		`"proxy-authorization" holds`: {Format: JSON, Fields: []string{"header.proxy-authorization"}},
		`"cookie" holds`:              {Format: Text, Template: "{header.cookie}"},
		`"x-api-key" holds`:           {Format: JSON, Fields: []string{"header.x-api-key"}},
		`"x-amz-security-token"`:      {Format: JSON, Fields: []string{"header.x-amz-security-token"}},
		"a template is for":           {Format: JSON, Template: "{status}"},
		"want one of them":            {Format: Text, Template: "{status}", Fields: []string{"status"}},
		"does not end":                {Format: Text, Template: "{status"},
		"without a field":             {Format: Text, Template: "status"},
		"one line":                    {Format: Text, Template: "{status}\n{path}"},
		"least status":                {Format: JSON, MinStatus: 600},
		"is negative":                 {Format: JSON, MinDuration: -1},
	} {
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", o, err, want)
		}
	}
}

func TestFilter(t *testing.T) {
	ok := func(status int, d time.Duration) *flow.Flow {
		return &flow.Flow{Type: flow.TypeHTTP, Duration: d, HTTP: &flow.HTTP{Status: status}}
	}
	refused := ok(0, 0)
	refused.Reason = flow.ReasonNoRoute
	for _, test := range []struct {
		status int
		d      time.Duration
		f      *flow.Flow
		want   bool
	}{
		{0, 0, ok(200, 0), true},
		{400, 0, ok(399, time.Hour), false},
		{400, 0, ok(400, 0), true},
		{0, time.Second, ok(500, time.Second-1), false},
		{0, time.Second, ok(200, time.Second), true},
		{500, time.Second, ok(200, time.Second), true},
		{500, time.Second, ok(500, 0), true},
		{500, time.Second, ok(200, 0), false},
		{500, time.Second, refused, true},
		{500, 0, &flow.Flow{Type: flow.TypeTCP, Duration: time.Hour}, false},
	} {
		l, err := Options{Format: JSON, MinStatus: test.status, MinDuration: test.d}.compile()
		if err != nil {
			t.Fatal(err)
		}
		if got := l.wants(test.f); got != test.want {
			t.Errorf("status %d and %s of %+v, %s: %v", test.status, test.d, test.f.HTTP, test.f.Duration, got)
		}
	}
}

// TestCost: an entry costs no memory once the log has its buffers.
func TestCost(t *testing.T) {
	f, head := exchange(), requestHead()
	f.HTTP.TraceID = flow.TraceID{1}
	for name, o := range map[string]Options{
		"JSON": {Format: JSON}, "text": {Format: Text},
		"fields":   {Format: JSON, Fields: append(Fields(), "header.user-agent")},
		"template": {Format: Text, Template: "{time} {method} {path} {header.user-agent} {status} {trace_id}"},
	} {
		l, err := New(io.Discard, o, 1<<20, nil)
		if err != nil {
			t.Fatal(err)
		}
		add := func() {
			l.Add(f, head)
			l.mu.Lock()
			l.pending, l.lines = l.pending[:0], 0
			l.mu.Unlock()
		}
		add()
		if allocs := testing.AllocsPerRun(1000, add); allocs != 0 {
			t.Errorf("%s: %v allocations", name, allocs)
		}
	}
}
