package http1

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/l7proxy/message"
)

// exchange is one parsed message with its bytes copied.
type exchange struct {
	head     message.Head
	body     []byte
	trailers []message.Field
	done     bool
}

// parse reads the messages at the front of input, at most max.
func parse(p *Parser, input []byte, max int) (all []exchange, rest []byte, err error) {
	buf := bytes.Clone(input)
	var x *exchange
	for {
		n, ev, err := p.Next(buf)
		if err != nil {
			return all, buf, err
		}
		switch ev.Kind {
		case NeedMore:
			return all, buf[n:], nil
		case Head:
			all = append(all, exchange{})
			x = &all[len(all)-1]
			p.Head().Clone(&x.head, nil)
		case Data:
			x.body = append(x.body, ev.Data...)
		case Trailers:
			for _, f := range p.Trailers() {
				x.trailers = append(x.trailers, message.Field{Name: bytes.Clone(f.Name), Value: bytes.Clone(f.Value)})
			}
		case End:
			x.done = true
			if len(all) == max {
				return all, buf[n:], nil
			}
		}
		buf = buf[n:]
	}
}

// hop are names that a head of ours never has and net/http keeps, or the other way round.
func hop(name string) bool {
	switch name {
	case "connection", "keep-alive", "proxy-connection", "te", "upgrade", "http2-settings", "content-length", "host", "trailer", "expect":
		return true
	}
	return false
}

// sameFields compares with net/http's view, which merges fields of one name and drops those of the hop.
func sameFields(t *testing.T, got []message.Field, want http.Header, connection []string) {
	t.Helper()
	ours := map[string][]string{}
	for _, f := range got {
		ours[string(f.Name)] = append(ours[string(f.Name)], string(f.Value))
	}
	nominated := map[string]bool{}
	for _, v := range connection {
		for item := range strings.SplitSeq(strings.ToLower(v), ",") {
			nominated[strings.Trim(item, " \t")] = true
		}
	}
	for name, values := range want {
		name = strings.ToLower(name)
		if hop(name) || nominated[name] {
			continue
		}
		if !slices.Equal(ours[name], values) {
			t.Errorf("field %q: ours %q, net/http %q", name, ours[name], values)
		}
		delete(ours, name)
	}
	for name, values := range ours {
		if !hop(name) {
			t.Errorf("field %q: %q is unknown to net/http", name, values)
		}
	}
}

var requestSeeds = []string{
	"GET /a?b=c HTTP/1.1\r\nHost: x.example:8080\r\nAccept: */*\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabcGET /2 HTTP/1.1\r\nHost: y\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nTrailer: A\r\n\r\n5;a=b\r\nhello\r\n0\r\nA: b\r\n\r\n",
	"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
	"GET http://y.example?q HTTP/1.1\r\nHost: x\r\nConnection: close, X-A\r\nX-A: b\r\n\r\n",
	"CONNECT y:1 HTTP/1.1\r\nHost: y:1\r\n\r\nabc",
	"OPTIONS * HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
	"\r\nPUT / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\na",
	"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
	"GET / HTTP/1.1\r\nHost: x\r\nX: a\r\n b\r\n\r\n",
	"GET / HTTP/1.1\nHost: x\n\n",
}

// FuzzRequest: bytes one by one mean what they mean together; net/http accepts what we accept, with
// the same meaning and the same end; and what our Writer makes of it, our Parser and net/http read as the same.
func FuzzRequest(f *testing.F) {
	for _, s := range requestSeeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		if len(input) > 8<<10 {
			return
		}
		whole, err := run(newRequest(), string(input), len(input)+1, false)
		bytewise, err2 := run(newRequest(), string(input), 1, false)
		if !slices.Equal(whole, bytewise) || (err == nil) != (err2 == nil) {
			t.Fatalf("whole %q %v, byte by byte %q %v", whole, err, bytewise, err2)
		}
		got, _, _ := parse(newRequest(), input, 1)
		if len(got) == 0 {
			return
		}
		x := got[0]
		method := string(x.head.Method)
		if method == "CONNECT" {
			// net/http allows content there and gives the target another shape.
			return
		}
		reader := bufio.NewReader(bytes.NewReader(bytes.TrimPrefix(input, []byte("\r\n"))))
		theirs, err := http.ReadRequest(reader)
		if err != nil {
			// Refusals of net/http that are not about HTTP: its URL parser wants well-formed escapes
			// and reads hosts more narrowly, and it knows no later minor versions.
			return
		}
		body, err := io.ReadAll(theirs.Body)
		if x.done && err != nil {
			t.Fatalf("we saw the end, net/http %v", err)
		}
		if !x.done && err == nil {
			t.Fatalf("net/http saw the end after %q, we did not after %q", body, x.body)
		}
		if x.done && !bytes.Equal(body, x.body) {
			t.Errorf("body %q, net/http %q", x.body, body)
		}
		if theirs.Method != method {
			t.Errorf("method %q, net/http %q", method, theirs.Method)
		}
		if string(x.head.Authority) != theirs.Host {
			t.Errorf("authority %q, net/http %q", x.head.Authority, theirs.Host)
		}
		if uri := theirs.RequestURI; uri[0] == '/' && uri != string(x.head.Path) {
			t.Errorf("path %q, net/http %q", x.head.Path, uri)
		}
		if uri := theirs.URL.RequestURI(); theirs.URL.IsAbs() && method != "OPTIONS" && uri != string(x.head.Path) && theirs.URL.Path != "" {
			t.Errorf("path %q, net/http %q", x.head.Path, uri)
		}
		want := theirs.ContentLength
		if ours := x.head.ContentLength; ours != want && (ours != -1 || want != 0) {
			t.Errorf("length %d, net/http %d", ours, want)
		}
		sameFields(t, x.head.Fields, theirs.Header, theirs.Header["Connection"])
		if x.done {
			var announced []string
			for name := range theirs.Trailer {
				announced = append(announced, name)
			}
			for _, f := range x.trailers {
				if v := theirs.Trailer.Values(string(f.Name)); len(announced) > 0 && len(v) == 0 && !hop(string(f.Name)) {
					t.Errorf("trailer %q: net/http has %q", f.Name, theirs.Trailer)
				}
			}
			roundTrip(t, &x)
		}
	})
}

// roundTrip writes a message that was read and reads it again.
func roundTrip(t *testing.T, x *exchange) {
	t.Helper()
	var w Writer
	out := w.AppendRequest(nil, &x.head)
	for b := x.body; len(b) > 0; {
		n := min(len(b), 7)
		out = w.AppendData(out, b[:n])
		b = b[n:]
	}
	out = w.AppendEnd(out, x.trailers)
	if w.Err() != nil {
		t.Fatalf("%s: %v", headText(&x.head), w.Err())
	}
	again, rest, err := parse(newRequest(), out, 2)
	if err != nil || len(again) != 1 || len(rest) > 0 || !again[0].done {
		t.Fatalf("%q: %d messages, %q left, %v", out, len(again), rest, err)
	}
	y := &again[0]
	if !bytes.Equal(x.body, y.body) || string(x.head.Method) != string(y.head.Method) || string(x.head.Path) != string(y.head.Path) ||
		string(x.head.Authority) != string(y.head.Authority) || x.head.End != y.head.End || x.head.Close != y.head.Close || string(x.head.Upgrade) != string(y.head.Upgrade) {
		t.Fatalf("%q: was %s, is %s", out, headText(&x.head), headText(&y.head))
	}
	x.head.Del("content-length")
	y.head.Del("content-length")
	equal := func(a, b message.Field) bool {
		return bytes.Equal(a.Name, b.Name) && bytes.Equal(a.Value, b.Value)
	}
	if !slices.EqualFunc(x.head.Fields, y.head.Fields, equal) || !slices.EqualFunc(x.trailers, y.trailers, equal) {
		t.Fatalf("%q: fields were %q, are %q", out, x.head.Fields, y.head.Fields)
	}
	theirs, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(out)))
	if err != nil {
		return
	}
	if body, err := io.ReadAll(theirs.Body); err != nil || !bytes.Equal(body, x.body) {
		t.Fatalf("%q: net/http reads %q, %v", out, body, err)
	}
}

// FuzzResponse does for responses what FuzzRequest does for requests.
func FuzzResponse(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
		"HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nA: b\r\n\r\n",
		"HTTP/1.0 200 OK\r\n\r\nabc",
		"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
		"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
		"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk",
	} {
		f.Add([]byte(s), false)
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, input []byte, isHead bool) {
		if len(input) > 8<<10 {
			return
		}
		method := "GET"
		if isHead {
			method = "HEAD"
		}
		expecting := func() *Parser {
			p := NewResponseParser(Limits{})
			p.ExpectResponseTo([]byte(method))
			return p
		}
		whole, err := run(expecting(), string(input), len(input)+1, true)
		bytewise, err2 := run(expecting(), string(input), 1, true)
		if !slices.Equal(whole, bytewise) || (err == nil) != (err2 == nil) {
			t.Fatalf("whole %q %v, byte by byte %q %v", whole, err, bytewise, err2)
		}
		p := expecting()
		got, rest, err := parse(p, input, 1)
		if len(got) == 0 || err != nil || got[0].head.Status < 200 {
			return
		}
		x := got[0]
		if !x.done {
			if _, err := p.EOF(); err != nil {
				return
			}
		}
		reader := bufio.NewReader(bytes.NewReader(input))
		theirs, err := http.ReadResponse(reader, &http.Request{Method: method})
		if err != nil {
			return
		}
		body, err := io.ReadAll(theirs.Body)
		if err != nil || !bytes.Equal(body, x.body) || theirs.StatusCode != x.head.Status {
			t.Errorf("%d %q, net/http %d %q %v", x.head.Status, x.body, theirs.StatusCode, body, err)
		}
		left, _ := io.ReadAll(reader)
		if !bytes.Equal(left, rest) {
			t.Errorf("left %q, net/http %q", rest, left)
		}
		if x.head.Status != http.StatusNoContent && theirs.ContentLength > 0 && x.head.ContentLength != theirs.ContentLength {
			t.Errorf("length %d, net/http %d", x.head.ContentLength, theirs.ContentLength)
		}
		sameFields(t, x.head.Fields, theirs.Header, theirs.Header["Connection"])
		var w Writer
		w.ReplyTo(&message.Head{Method: []byte(method), Proto: message.HTTP11})
		x.head.Close = false
		out := w.AppendResponse(nil, &x.head)
		out = w.AppendEnd(w.AppendData(out, x.body), x.trailers)
		if w.Err() != nil {
			t.Fatalf("%s: %v", headText(&x.head), w.Err())
		}
		again, left, err := parse(expecting(), out, 2)
		if err != nil || len(again) != 1 || len(left) > 0 || !again[0].done || !bytes.Equal(again[0].body, x.body) {
			t.Fatalf("%q: %d messages, %q left, %v", out, len(again), left, err)
		}
	})
}

// FuzzWriter: whatever head it is given, a Writer refuses or writes one message with just those fields.
func FuzzWriter(f *testing.F) {
	f.Add("GET", "x", "/", "a", "b", int64(-1), []byte("body"))
	f.Add("POST", "x:1", "/a?b", "x-a", "b\r\nc: d", int64(4), []byte("body"))
	f.Add("CONNECT", "x:1", "", "te", "trailers", int64(0), []byte(""))
	f.Fuzz(func(t *testing.T, method, authority, path, name, value string, length int64, body []byte) {
		h := &message.Head{
			Method: []byte(method), Authority: []byte(authority), Path: []byte(path), ContentLength: max(length, -1),
			End: len(body) == 0, Fields: []message.Field{{Name: []byte(name), Value: []byte(value)}},
		}
		if method == "CONNECT" {
			h.End = true
		}
		var w Writer
		out := w.AppendRequest(nil, h)
		if method != "CONNECT" {
			out = w.AppendEnd(w.AppendData(out, body), nil)
		}
		if w.Err() != nil {
			return
		}
		if name == "expect" && strings.Trim(value, " \t") != "100-continue" {
			return
		}
		got, rest, err := parse(newRequest(), out, 2)
		if err != nil || len(got) != 1 || len(rest) > 0 || !got[0].done {
			t.Fatalf("%q: %d messages, %q left, %v", out, len(got), rest, err)
		}
		x := &got[0].head
		if string(x.Method) != method || string(x.Authority) != authority || method != "CONNECT" && string(x.Path) != path {
			t.Fatalf("%q: %s", out, headText(x))
		}
		for _, f := range x.Fields {
			if string(f.Name) == "content-length" && strconv.Itoa(len(got[0].body)) == string(f.Value) {
				continue
			}
			if string(f.Name) != name || string(f.Value) != strings.Trim(value, " \t") {
				t.Fatalf("%q: field %q: %q", out, f.Name, f.Value)
			}
		}
	})
}
