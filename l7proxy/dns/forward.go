package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
)

const (
	// tryTimeout bounds one try at one upstream. Stub resolvers repeat after 5 s
	// (resolv.conf(5)); two upstreams can be tried before that.
	tryTimeout = 2 * time.Second
	// askTimeout bounds all tries of a query.
	askTimeout = 4500 * time.Millisecond
	// avoidFor is how long an upstream that did not answer is asked last.
	avoidFor = 10 * time.Second
	// forwardSize is the size of UDP answers that upstreams may send: the least that
	// every link carries whole (DNS flag day 2020).
	forwardSize = 1232
)

var errTimeout = errors.New("no upstream resolver answered in time")

// forwarder asks upstream resolvers.
type forwarder struct {
	upstreams []*upstream
	slots     chan struct{} // one element for each question under way
	metrics   *metrics
	// tryTimeout is the constant; tests of silence have less patience.
	tryTimeout time.Duration
}

type upstream struct {
	addr    netip.AddrPort
	avoid   atomic.Int64 // until then, in Unix nanoseconds
	results map[string]prometheus.Counter
}

func newForwarder(addrs []netip.AddrPort, m *metrics) *forwarder {
	f := &forwarder{slots: make(chan struct{}, maxForwards), metrics: m, tryTimeout: tryTimeout}
	for _, a := range addrs {
		u := &upstream{addr: a, results: map[string]prometheus.Counter{}}
		for _, r := range []string{"answered", "refused", "timeout", "failed"} {
			u.results[r] = m.asked.WithLabelValues(a.String(), r)
		}
		f.upstreams = append(f.upstreams, u)
	}
	return f
}

// able reports whether there is anybody to ask.
func (f *forwarder) able() bool { return len(f.upstreams) > 0 }

// enter takes a place for a question of w, and reports false if there is none.
func (f *forwarder) enter(w *workload) bool {
	select {
	case w.forwards <- struct{}{}:
	default:
		return false
	}
	select {
	case f.slots <- struct{}{}:
		f.metrics.waiting.Inc()
		return true
	default:
		<-w.forwards
		return false
	}
}

func (f *forwarder) leave(w *workload) {
	f.metrics.waiting.Dec()
	<-f.slots
	<-w.forwards
}

// exchange asks the upstreams in their order, those that lately did not answer last,
// for a name with the type of query. It returns the first answer that is neither
// SERVFAIL nor REFUSED, else the last that came, and who gave it.
func (f *forwarder) exchange(ctx context.Context, query *dns.Msg, name string) (*dns.Msg, netip.AddrPort, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	q := query.Question[0]
	m := new(dns.Msg)
	m.Question = []dns.Question{{Name: name, Qtype: q.Qtype, Qclass: q.Qclass}}
	m.RecursionDesired = true
	m.CheckingDisabled = query.CheckingDisabled
	m.AuthenticatedData = query.AuthenticatedData
	opt := query.IsEdns0()
	m.SetEdns0(forwardSize, opt != nil && opt.Do())

	var last *dns.Msg
	var lastFrom netip.AddrPort
	err := errTimeout
	for _, u := range f.order() {
		lastFrom = u.addr
		answer, tryErr := f.try(ctx, u.addr, m)
		switch {
		case tryErr != nil && ctx.Err() == nil && !isTimeout(tryErr):
			u.results["failed"].Inc()
			u.avoid.Store(time.Now().Add(avoidFor).UnixNano())
			err = fmt.Errorf("ask upstream resolver %s: %w", u.addr, tryErr)
		case tryErr != nil:
			u.results["timeout"].Inc()
			u.avoid.Store(time.Now().Add(avoidFor).UnixNano())
		case answer.Rcode == dns.RcodeServerFailure || answer.Rcode == dns.RcodeRefused:
			u.results["refused"].Inc()
			u.avoid.Store(0)
			last = answer
		default:
			u.results["answered"].Inc()
			u.avoid.Store(0)
			return answer, u.addr, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	if last != nil {
		return last, lastFrom, nil
	}
	return nil, lastFrom, err
}

func (f *forwarder) order() []*upstream {
	now := time.Now().UnixNano()
	out := make([]*upstream, 0, len(f.upstreams))
	for _, avoided := range []bool{false, true} {
		for _, u := range f.upstreams {
			if (u.avoid.Load() > now) == avoided {
				out = append(out, u)
			}
		}
	}
	return out
}

// try asks one upstream over UDP, from a port that the kernel chose for this question
// alone, and over TCP if the answer does not fit.
func (f *forwarder) try(ctx context.Context, addr netip.AddrPort, m *dns.Msg) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, f.tryTimeout)
	defer cancel()
	m = m.Copy()
	m.Id = uint16(rand.Uint32())
	wire, err := m.Pack()
	if err != nil {
		return nil, err
	}
	answer, err := tryOver(ctx, "udp", addr, m, wire)
	if err == nil && answer.Truncated {
		if whole, err := tryOver(ctx, "tcp", addr, m, wire); err == nil {
			return whole, nil
		}
	}
	return answer, err
}

func tryOver(ctx context.Context, network string, addr netip.AddrPort, m *dns.Msg, wire []byte) (*dns.Msg, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, network, addr.String())
	if err != nil {
		return nil, err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if network == "tcp" {
		wire = append(binary.BigEndian.AppendUint16(nil, uint16(len(wire))), wire...)
	}
	if _, err := c.Write(wire); err != nil {
		return nil, err
	}
	if network == "tcp" {
		var length [2]byte
		if _, err := io.ReadFull(c, length[:]); err != nil {
			return nil, err
		}
		buf := make([]byte, binary.BigEndian.Uint16(length[:]))
		if _, err := io.ReadFull(c, buf); err != nil {
			return nil, err
		}
		answer := new(dns.Msg)
		if err := answer.Unpack(buf); err != nil {
			return nil, err
		}
		if !answers(answer, m) {
			return nil, errors.New("the answer is to another question")
		}
		return answer, nil
	}
	buf := make([]byte, forwardSize)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		// What is not the answer may be forged: wait on for the true one (RFC 5452 §3).
		answer := new(dns.Msg)
		if err := answer.Unpack(buf[:n]); err == nil && answers(answer, m) {
			return answer, nil
		}
	}
}

// answers reports whether a is an answer to m.
func answers(a, m *dns.Msg) bool {
	if a.Id != m.Id || !a.Response || a.Opcode != dns.OpcodeQuery {
		return false
	}
	if len(a.Question) == 0 {
		// Some servers leave it out of errors.
		return a.Rcode != dns.RcodeSuccess && a.Rcode != dns.RcodeNameError
	}
	q, p := m.Question[0], a.Question[0]
	return len(a.Question) == 1 && strings.EqualFold(q.Name, p.Name) && q.Qtype == p.Qtype && q.Qclass == p.Qclass
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}
