package http1

import (
	"errors"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/l7proxy/message"
)

// head builds a head from a first line ("GET http://authority/path", "200") and "name: value" lines.
func head(first string, fields ...string) *message.Head {
	h := &message.Head{}
	h.Reset()
	h.Proto = message.HTTP11
	if method, rest, ok := strings.Cut(first, " "); ok {
		h.Method = []byte(method)
		authority, path, slash := strings.Cut(rest, "/")
		h.Authority = []byte(authority)
		if slash {
			h.Path = []byte("/" + path)
		}
	} else {
		for _, c := range first {
			h.Status = h.Status*10 + int(c-'0')
		}
	}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		h.Add([]byte(name), []byte(value))
	}
	return h
}

func with(h *message.Head, edit func(h *message.Head)) *message.Head {
	edit(h)
	return h
}

func length(n int64) func(h *message.Head) { return func(h *message.Head) { h.ContentLength = n } }
func end(h *message.Head)                  { h.End = true }

func TestWriteRequests(t *testing.T) {
	for _, test := range []struct {
		name     string
		head     *message.Head
		body     string
		trailers []message.Field
		want     string
	}{
		{"get", with(head("GET x:80/a?b", "accept: */*"), end), "", nil, "GET /a?b HTTP/1.1\r\nhost: x:80\r\naccept: */*\r\n\r\n"},
		{"post without content", with(head("POST x/"), end), "", nil, "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n"},
		{
			"known length", with(head("PUT x/", "content-length: 003", "a: b"), length(3)), "abc", nil,
			"PUT / HTTP/1.1\r\nhost: x\r\na: b\r\ncontent-length: 3\r\n\r\nabc",
		},
		{
			"chunked with trailers", head("POST x/", "te: trailers"), "hello, world, hello", []message.Field{{Name: []byte("a"), Value: []byte("b")}},
			"POST / HTTP/1.1\r\nhost: x\r\nte: trailers\r\ntransfer-encoding: chunked\r\nconnection: te\r\n\r\n13\r\nhello, world, hello\r\n0\r\na: b\r\n\r\n",
		},
		{
			"what the hop owns", with(head("GET x/", "connection: x", "host: y", "transfer-encoding: chunked", "upgrade: h2c", "keep-alive: 1", "proxy-connection: 1", "te: gzip"), end), "", nil,
			"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
		},
		{
			"close", with(head("GET x/"), func(h *message.Head) { h.End, h.Close = true, true }), "", nil,
			"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
		},
		{
			"upgrade", with(head("GET x/"), func(h *message.Head) { h.End, h.Upgrade = true, []byte("websocket") }), "", nil,
			"GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
		},
		{"connect", head("CONNECT x:1"), "raw", nil, "CONNECT x:1 HTTP/1.1\r\nhost: x:1\r\n\r\nraw"},
		{"options", with(head("OPTIONS x"), func(h *message.Head) { h.End, h.Path = true, []byte("*") }), "", nil, "OPTIONS * HTTP/1.1\r\nhost: x\r\n\r\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var w Writer
			out := w.AppendRequest([]byte("before"), test.head)
			out = w.AppendData(out, []byte(test.body))
			out = w.AppendEnd(out, test.trailers)
			if err := w.Err(); err != nil {
				t.Fatal(err)
			}
			if got := strings.TrimPrefix(string(out), "before"); got != test.want {
				t.Errorf("got  %q\nwant %q", got, test.want)
			}
			if w.Close() != test.head.Close {
				t.Errorf("Close is %v", w.Close())
			}
		})
	}
}

func TestWriteResponses(t *testing.T) {
	get := head("GET x/")
	old := with(head("GET x/"), func(h *message.Head) { h.Proto, h.Close = message.HTTP10, true })
	oldKept := with(head("GET x/"), func(h *message.Head) { h.Proto = message.HTTP10 })
	closing := with(head("GET x/"), func(h *message.Head) { h.Close = true })
	for _, test := range []struct {
		name     string
		request  *message.Head
		response *message.Head
		body     string
		want     string
		close    bool
	}{
		{"known length", get, with(head("200", "content-length: 2", "a: b"), length(2)), "ok", "HTTP/1.1 200 OK\r\na: b\r\ncontent-length: 2\r\n\r\nok", false},
		{"chunked", get, head("299"), "ok", "HTTP/1.1 299 \r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", false},
		{"empty", get, with(head("404"), end), "", "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", false},
		{"no content", get, with(head("204", "content-length: 0"), end), "", "HTTP/1.1 204 No Content\r\n\r\n", false},
		{"not modified", get, with(with(head("304"), end), length(7)), "", "HTTP/1.1 304 Not Modified\r\ncontent-length: 7\r\n\r\n", false},
		{"head", head("HEAD x/"), with(with(head("200"), end), length(7)), "", "HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n", false},
		{"head without length", head("HEAD x/"), head("200"), "", "HTTP/1.1 200 OK\r\n\r\n", false},
		{"client closes", closing, with(head("200"), end), "", "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n", true},
		{"HTTP/1.0", old, with(head("200"), length(2)), "ok", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok", true},
		{"HTTP/1.0 without length", oldKept, head("200"), "ok", "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nok", true},
		{"HTTP/1.0 kept", oldKept, with(head("200"), length(2)), "ok", "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nok", false},
		{
			"switch", with(head("GET x/"), func(h *message.Head) { h.Upgrade = []byte("websocket") }),
			with(head("101"), func(h *message.Head) { h.Upgrade = []byte("websocket") }), "raw",
			"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nraw", false,
		},
		{"tunnel", head("CONNECT x:1"), head("200"), "raw", "HTTP/1.1 200 OK\r\n\r\nraw", false},
		{"tunnel refused", head("CONNECT x:1"), with(head("403"), end), "", "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			var w Writer
			w.ReplyTo(test.request)
			out := w.AppendResponse(nil, test.response)
			out = w.AppendData(out, []byte(test.body))
			out = w.AppendEnd(out, nil)
			if err := w.Err(); err != nil {
				t.Fatal(err)
			}
			if string(out) != test.want {
				t.Errorf("got  %q\nwant %q", out, test.want)
			}
			if w.Close() != test.close {
				t.Errorf("Close is %v", w.Close())
			}
		})
	}
}

func TestWriteInterim(t *testing.T) {
	var w Writer
	w.ReplyTo(head("HEAD x/"))
	out := w.AppendContinue(nil)
	out = w.AppendResponse(out, with(head("103", "link: a"), end))
	out = w.AppendResponse(out, with(with(head("200"), end), length(7)))
	out = w.AppendEnd(out, nil)
	want := "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n"
	if string(out) != want || w.Err() != nil {
		t.Errorf("%q, %v", out, w.Err())
	}
	w.ReplyTo(with(head("GET x/"), func(h *message.Head) { h.Proto = message.HTTP10 }))
	if out := w.AppendResponse(w.AppendContinue(nil), head("103")); len(out) != 0 {
		t.Errorf("HTTP/1.0 client was sent %q", out)
	}
}

// What a reader would take for something else is not written.
func TestWriterRefuses(t *testing.T) {
	request := func(h *message.Head) func(w *Writer) []byte {
		return func(w *Writer) []byte { return w.AppendRequest(nil, h) }
	}
	response := func(h *message.Head) func(w *Writer) []byte {
		return func(w *Writer) []byte { w.ReplyTo(head("GET x/")); return w.AppendResponse(nil, h) }
	}
	for _, test := range []struct {
		name string
		do   func(w *Writer) []byte
		want error
	}{
		{"CR in a value", request(head("GET x/", "a: b\rc")), ErrField},
		{"LF in a value", response(head("200", "a: bbbbbbbbbbbb\nc")), ErrField},
		{"NUL in a value", response(head("103", "a: \x00")), ErrField},
		{"upper case in a name", request(head("GET x/", "A: b")), ErrField},
		{"colon in a name", request(head("GET x/", "a:b: c")), ErrField},
		{"empty name", request(head("GET x/", ": c")), ErrField},
		{"space in the target", request(head("GET x/a b")), ErrTarget},
		{"line end in the target", request(head("GET x/aaaaaaaaaaaa\r\nb")), ErrTarget},
		{"no target", request(head("GET x")), ErrTarget},
		{"authority with a space", request(head("GET x y/")), ErrTarget},
		{"connect without a port number", request(head("CONNECT x:y")), ErrTarget},
		{"method with a space", request(with(head("GET x/"), func(h *message.Head) { h.Method = []byte("GET /") })), ErrMethod},
		{"no method", request(with(head("GET x/"), func(h *message.Head) { h.Method = nil })), ErrMethod},
		{"extended connect", request(with(head("CONNECT x:1"), func(h *message.Head) { h.Upgrade = []byte("websocket") })), ErrUpgrade},
		{"upgrade with a line end", request(with(head("GET x/"), func(h *message.Head) { h.End, h.Upgrade = true, []byte("a\r\nb: c") })), ErrUpgrade},
		{"switch not asked for", response(with(head("101"), func(h *message.Head) { h.Upgrade = []byte("websocket") })), ErrUpgrade},
		{"status 99", response(head("99")), ErrStatus},
		{"status 1000", response(head("1000")), ErrStatus},
		{"length without a body", response(with(with(head("200"), end), length(3))), ErrBodyShort},
		{"length without a body, request", request(with(with(head("POST x/"), end), length(3))), ErrBodyShort},
	} {
		t.Run(test.name, func(t *testing.T) {
			var w Writer
			if out := test.do(&w); len(out) != 0 || !errors.Is(w.Err(), test.want) {
				t.Errorf("%q, %v, want %v", out, w.Err(), test.want)
			}
			if out := w.AppendEnd(w.AppendData(nil, []byte("abc")), nil); len(out) != 0 {
				t.Errorf("after a refusal: %q", out)
			}
		})
	}
	body := func(h *message.Head, request, data string, want error) {
		t.Helper()
		var w Writer
		w.ReplyTo(head(request))
		out := w.AppendResponse(nil, h)
		n := len(out)
		out = w.AppendEnd(w.AppendData(out, []byte(data)), nil)
		if !errors.Is(w.Err(), want) || len(out) != n && want != ErrBodyShort {
			t.Errorf("%q after the head, %v, want %v", out[n:], w.Err(), want)
		}
	}
	body(with(head("200"), length(3)), "GET x/", "abcd", ErrBodyLong)
	body(with(head("200"), length(3)), "GET x/", "ab", ErrBodyShort)
	body(with(head("200"), length(3)), "HEAD x/", "abc", ErrBodyLong)
	body(head("304"), "GET x/", "abc", ErrBodyLong)
	body(with(head("200"), end), "GET x/", "abc", ErrBodyLong)
	var w Writer
	w.ReplyTo(head("GET x/"))
	out := w.AppendResponse(nil, head("200"))
	if got := w.AppendEnd(out, []message.Field{{Name: []byte("a"), Value: []byte("\n")}}); len(got) != len(out) || w.Err() != ErrField {
		t.Errorf("trailer with LF: %q, %v", got, w.Err())
	}
}

func TestDataFraming(t *testing.T) {
	var w Writer
	w.ReplyTo(head("GET x/"))
	w.AppendResponse(nil, head("200"))
	prefix, suffix := w.DataFraming(0x1f00)
	if string(prefix) != "1f00\r\n" || string(suffix) != "\r\n" || w.Raw() {
		t.Errorf("%q %q", prefix, suffix)
	}
	w.AppendResponse(nil, with(head("200"), length(5)))
	prefix, suffix = w.DataFraming(5)
	if len(prefix)+len(suffix) != 0 || !w.Raw() || w.Err() != nil {
		t.Errorf("%q %q %v", prefix, suffix, w.Err())
	}
	w.DataFraming(1)
	if w.Err() != ErrBodyLong {
		t.Error(w.Err())
	}
}
