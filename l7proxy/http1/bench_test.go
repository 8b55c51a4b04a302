package http1

import (
	"bytes"
	"strconv"
	"strings"
	"testing"
)

const benchRequest = "GET /api/v1/namespaces/shop/items?limit=50&continue=abc HTTP/1.1\r\n" +
	"Host: reviews.shop.svc.cluster.local\r\n" +
	"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:120.0) Gecko/20100101 Firefox/120.0\r\n" +
	"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n" +
	"Accept-Language: en-US,en;q=0.5\r\n" +
	"Accept-Encoding: gzip, deflate, br\r\n" +
	"Connection: keep-alive\r\n" +
	"Cookie: session=0123456789abcdef0123456789abcdef; theme=dark\r\n" +
	"X-Request-Id: 5f0c2a9e-8d2b-4c57-9d0e-0d8f3b0f6a11\r\n" +
	"Traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n" +
	"Cache-Control: no-cache\r\n\r\n"

var benchResponse = "HTTP/1.1 200 OK\r\nServer: nginx\r\nDate: Mon, 23 Nov 2026 21:00:00 GMT\r\nContent-Type: application/json\r\n" +
	"Content-Length: 1024\r\nConnection: keep-alive\r\nEtag: \"5f0c2a9e\"\r\n\r\n" + strings.Repeat("x", 1024)

func parseOne(p *Parser, buf []byte) int {
	total := 0
	for {
		n, ev, err := p.Next(buf[total:])
		if err != nil {
			panic(err)
		}
		total += n
		if ev.Kind == End {
			return total
		}
		if ev.Kind == NeedMore {
			panic("incomplete")
		}
	}
}

func BenchmarkParseRequest(b *testing.B) {
	p := newRequest()
	buf := make([]byte, len(benchRequest))
	b.ReportAllocs()
	b.SetBytes(int64(len(buf)))
	for b.Loop() {
		copy(buf, benchRequest)
		parseOne(p, buf)
	}
}

func BenchmarkParseResponse(b *testing.B) {
	p := NewResponseParser(Limits{})
	buf := make([]byte, len(benchResponse))
	get := []byte("GET")
	b.ReportAllocs()
	for b.Loop() {
		copy(buf, benchResponse)
		p.ExpectResponseTo(get)
		parseOne(p, buf)
	}
}

func BenchmarkWriteRequest(b *testing.B) {
	p := newRequest()
	buf := []byte(benchRequest)
	parseOne(p, buf)
	var w Writer
	var out []byte
	b.ReportAllocs()
	for b.Loop() {
		out = w.AppendEnd(w.AppendRequest(out[:0], p.Head()), nil)
	}
}

func BenchmarkChunks(b *testing.B) {
	var w Writer
	get := head("GET x/")
	response := head("200")
	data := bytes.Repeat([]byte("x"), 4096)
	w.ReplyTo(get)
	stream := w.AppendResponse(nil, response)
	for range 16 {
		stream = w.AppendData(stream, data)
	}
	stream = w.AppendEnd(stream, nil)
	p := NewResponseParser(Limits{})
	b.ReportAllocs()
	b.SetBytes(int64(len(stream)))
	for b.Loop() {
		p.ExpectResponseTo(get.Method)
		parseOne(p, stream)
	}
}

// A message costs no memory once the first ones were seen.
func TestAllocations(t *testing.T) {
	p, q := newRequest(), NewResponseParser(Limits{})
	in := make([]byte, len(benchRequest))
	chunked := "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n" + strconv.FormatInt(64, 16) + "\r\n" +
		strings.Repeat("a", 64) + "\r\n0\r\na: b\r\n\r\n"
	in2 := make([]byte, len(chunked))
	var w Writer
	var out []byte
	data := make([]byte, 1000)
	request := head("POST x/", "a: b")
	if n := testing.AllocsPerRun(100, func() {
		copy(in, benchRequest)
		parseOne(p, in)
		out = w.AppendEnd(w.AppendRequest(out[:0], p.Head()), nil)
		out = w.AppendEnd(w.AppendData(w.AppendRequest(out[:0], request), data), nil)
		copy(in2, chunked)
		q.ExpectResponseTo(request.Method)
		parseOne(q, in2)
		w.ReplyTo(request)
		out = w.AppendEnd(w.AppendResponse(out[:0], q.Head()), q.Trailers())
	}); n != 0 {
		t.Errorf("%v allocations per exchange", n)
	}
}
