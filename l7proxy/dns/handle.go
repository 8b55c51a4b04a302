package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// client is who sent a query, and how.
type client struct {
	workload *workload
	addr     netip.AddrPort
	protocol mesh.Protocol
	start    time.Time
}

// question is a query that upstreams must help with.
type question struct {
	client client
	query  *dns.Msg
	reply  *dns.Msg // what is known already: an alias, or nothing
	name   string   // to ask for: the query's, or the alias's target
}

// outcome is what the flow says beyond the reply.
type outcome struct {
	verdict  flow.Verdict
	reason   flow.Reason
	detail   string
	upstream netip.AddrPort
}

var forwarded = outcome{verdict: flow.VerdictForwarded}

// handle answers a message from what the node knows. reply is nil for what deserves
// none. If upstreams must be asked, it returns the question in place of a reply.
func (s *Server) handle(message []byte, c *client) (reply []byte, ask *question) {
	query := new(dns.Msg)
	if err := query.Unpack(message); err != nil {
		s.metrics.invalid.Inc()
		if len(message) < 12 || message[2]&0x80 != 0 {
			return nil, nil
		}
		// The header tells where to send what (RFC 1035 §4.1.1).
		bad := new(dns.Msg)
		bad.Id = binary.BigEndian.Uint16(message)
		bad.Response = true
		bad.Opcode = int(message[2] >> 3 & 15)
		bad.Rcode = dns.RcodeFormatError
		return s.finish(c, nil, bad, outcome{flow.VerdictDropped, flow.ReasonDownstreamProtocol, "not a DNS message", netip.AddrPort{}}), nil
	}
	if query.Response {
		s.metrics.invalid.Inc()
		return nil, nil // answering an answer could go on for ever
	}
	out := new(dns.Msg)
	out.SetReply(query)
	out.Compress = true
	out.RecursionAvailable = s.forward.able()
	refuse := func(rcode int, reason flow.Reason, detail string) ([]byte, *question) {
		out.Rcode = rcode
		return s.finish(c, query, out, outcome{flow.VerdictDropped, reason, detail, netip.AddrPort{}}), nil
	}
	switch opt := query.IsEdns0(); {
	case query.Opcode != dns.OpcodeQuery:
		return refuse(dns.RcodeNotImplemented, flow.ReasonUnsupported, "operation "+dns.OpcodeToString[query.Opcode])
	case len(query.Question) != 1:
		s.metrics.invalid.Inc()
		return refuse(dns.RcodeFormatError, flow.ReasonDownstreamProtocol, fmt.Sprintf("%d questions", len(query.Question)))
	case opt != nil && opt.Version() != 0:
		return refuse(dns.RcodeBadVers, flow.ReasonUnsupported, fmt.Sprintf("EDNS version %d", opt.Version()))
	}
	q := query.Question[0]
	switch {
	case q.Qclass != dns.ClassINET:
		return refuse(dns.RcodeRefused, flow.ReasonUnsupported, "class "+dns.Class(q.Qclass).String())
	case q.Qtype == dns.TypeAXFR || q.Qtype == dns.TypeIXFR:
		return refuse(dns.RcodeRefused, flow.ReasonUnsupported, "zone transfer")
	}
	a := s.zone.answer(q)
	switch {
	case a.outside && !s.forward.able():
		return refuse(dns.RcodeRefused, flow.ReasonUnsupported, "no upstream resolver for names outside "+s.zone.name)
	case a.outside && !query.RecursionDesired:
		return refuse(dns.RcodeRefused, flow.ReasonUnsupported, "recursion for names outside "+s.zone.name+" is not asked for")
	case a.outside:
		return nil, &question{client: *c, query: query, reply: out, name: q.Name}
	}
	out.Authoritative = true
	out.Rcode, out.Answer, out.Extra = a.rcode, a.rrs, a.extra
	if a.chase != "" && s.forward.able() && query.RecursionDesired {
		return nil, &question{client: *c, query: query, reply: out, name: a.chase}
	}
	if q.Qtype == dns.TypeANY && a.rcode == dns.RcodeSuccess && len(a.rrs) == 0 {
		// RFC 8482 §4.2: a name that exists has this to say to whoever wants all.
		out.Answer = []dns.RR{&dns.HINFO{Hdr: header(q.Name, dns.TypeHINFO), Cpu: "RFC8482"}}
	}
	if a.rcode == dns.RcodeNameError || a.rcode == dns.RcodeSuccess && len(out.Answer) == 0 {
		out.Ns = []dns.RR{s.zone.soa()} // how long the absence holds (RFC 2308 §3)
	}
	if a.rcode == dns.RcodeServerFailure {
		return s.finish(c, query, out, outcome{flow.VerdictError, flow.ReasonInternal, "aliases without end, or no name", netip.AddrPort{}}), nil
	}
	return s.finish(c, query, out, forwarded), nil
}

// ask has upstreams answer a question. It returns the reply, SERVFAIL if nobody
// answered.
func (s *Server) ask(ctx context.Context, a *question) []byte {
	c := &a.client
	fail := func(rcode int, o outcome) []byte {
		a.reply.Rcode = rcode
		return s.finish(c, a.query, a.reply, o)
	}
	if !s.forward.enter(c.workload) {
		s.metrics.limited.Inc()
		return fail(dns.RcodeServerFailure, outcome{flow.VerdictDropped, flow.ReasonOverLimit, "queries that wait for upstreams", netip.AddrPort{}})
	}
	defer s.forward.leave(c.workload)
	answer, upstream, err := s.forward.exchange(ctx, a.query, a.name)
	if err != nil {
		o := outcome{flow.VerdictError, flow.ReasonConnectFailed, err.Error(), upstream}
		if errors.Is(err, errTimeout) {
			o.reason = flow.ReasonConnectTimeout
		}
		return fail(dns.RcodeServerFailure, o)
	}
	return s.merge(a, answer, upstream)
}

// merge makes the reply of what is known and of an upstream's answer, whose header
// and question were checked and whose records may be anything.
func (s *Server) merge(a *question, answer *dns.Msg, upstream netip.AddrPort) []byte {
	c, q := &a.client, a.query.Question[0]
	a.reply.Authoritative = false
	a.reply.Rcode = answer.Rcode
	a.reply.Truncated = answer.Truncated
	a.reply.AuthenticatedData = answer.AuthenticatedData && len(a.reply.Answer) == 0
	for _, rr := range answer.Answer {
		if h := rr.Header(); strings.EqualFold(h.Name, q.Name) {
			h.Name = q.Name
		}
		a.reply.Answer = append(a.reply.Answer, rr)
	}
	a.reply.Ns = answer.Ns
	for _, rr := range answer.Extra {
		if rr.Header().Rrtype != dns.TypeOPT { // concerns one hop (RFC 6891 §6.1.1)
			a.reply.Extra = append(a.reply.Extra, rr)
		}
	}
	return s.finish(c, a.query, a.reply, outcome{verdict: flow.VerdictForwarded, upstream: upstream})
}

// finish packs a reply within the client's limits and reports the flow. query is nil if
// it could not be parsed.
func (s *Server) finish(c *client, query, reply *dns.Msg, o outcome) []byte {
	size := dns.MaxMsgSize
	var opt *dns.OPT
	if query != nil {
		opt = query.IsEdns0()
	}
	if c.protocol == mesh.ProtocolUDP {
		size = dns.MinMsgSize
		if opt != nil {
			size = min(max(int(opt.UDPSize()), dns.MinMsgSize), maxUDP)
		}
	}
	if opt != nil {
		reply.SetEdns0(maxUDP, opt.Do())
	}
	reply.Truncate(size)
	out, err := reply.Pack()
	if err != nil || len(out) > size {
		// Only what an upstream sent can be such.
		o = outcome{flow.VerdictError, flow.ReasonInternal, "the reply cannot be written", o.upstream}
		bare := new(dns.Msg)
		bare.Id, bare.Response, bare.Rcode, bare.Question = reply.Id, true, dns.RcodeServerFailure, reply.Question
		reply = bare
		if out, err = reply.Pack(); err != nil || len(out) > size {
			return nil
		}
	}
	if s.cfg.Flows != nil {
		s.cfg.Flows(s.flow(c, query, reply, o))
	}
	return out
}

// maxFlowAnswers bounds what a flow repeats of an answer.
const maxFlowAnswers = 16

func (s *Server) flow(c *client, query, reply *dns.Msg, o outcome) *flow.Flow {
	now := time.Now()
	f := &flow.Flow{
		Time: now, Node: s.cfg.Node, Type: flow.TypeDNS,
		Verdict: o.verdict, Reason: o.reason, Detail: o.detail,
		Source:      flow.Peer{AddrPort: c.addr, Workload: c.workload.name},
		Destination: flow.Peer{AddrPort: o.upstream},
		Protocol:    c.protocol, Duration: now.Sub(c.start),
		DNS: &flow.DNS{RCode: dns.RcodeToString[reply.Rcode]},
	}
	if w := s.cfg.Store.Workload(c.workload.name); w != nil {
		f.Source.Labels = w.Labels
	}
	if query != nil && len(query.Question) == 1 {
		f.DNS.Query = query.Question[0].Name
		f.DNS.Type = dns.Type(query.Question[0].Qtype).String()
	}
	for _, rr := range reply.Answer {
		if len(f.DNS.Answer) == maxFlowAnswers {
			break
		}
		switch rr := rr.(type) {
		case *dns.A:
			f.DNS.Answer = append(f.DNS.Answer, rr.A.String())
		case *dns.AAAA:
			f.DNS.Answer = append(f.DNS.Answer, rr.AAAA.String())
		case *dns.CNAME:
			f.DNS.Answer = append(f.DNS.Answer, rr.Target)
		case *dns.PTR:
			f.DNS.Answer = append(f.DNS.Answer, rr.Ptr)
		case *dns.SRV:
			f.DNS.Answer = append(f.DNS.Answer, fmt.Sprintf("%s:%d", rr.Target, rr.Port))
		}
	}
	return f
}
