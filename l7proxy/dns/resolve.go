package dns

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/miekg/dns"
)

// absentTTL is for how long it holds that a name does not exist if its answer does not
// say (RFC 2308 §5).
const absentTTL = 30 * time.Second

// Resolve returns the addresses of a full name and for how long they hold: from the
// store if it is the cluster's, else from the upstreams, whose aliases it follows. IPv4
// goes before IPv6, as one endpoint with two addresses is one endpoint. No address
// without an error says that there is no such name or none of its addresses can be a
// backend: those of the node itself and of its links cannot (CVE-2021-25740 is of that
// kind).
func (s *Server) Resolve(ctx context.Context, name string) ([]netip.Addr, time.Duration, error) {
	absent := absentTTL
	for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA} {
		rrs, err := s.lookup(ctx, dns.Question{Name: dns.Fqdn(name), Qtype: kind, Qclass: dns.ClassINET})
		if err != nil {
			return nil, 0, err
		}
		var addrs []netip.Addr
		ttl := time.Duration(1<<63 - 1)
		for _, rr := range rrs {
			ttl = min(ttl, time.Duration(rr.Header().Ttl)*time.Second)
			var a netip.Addr
			switch rr := rr.(type) {
			case *dns.A:
				a, _ = netip.AddrFromSlice(rr.A)
			case *dns.AAAA:
				a, _ = netip.AddrFromSlice(rr.AAAA)
			}
			if a = a.Unmap(); a.IsGlobalUnicast() {
				addrs = append(addrs, a)
			}
		}
		if len(addrs) > 0 {
			return addrs, ttl, nil
		}
	}
	return nil, absent, nil
}

// lookup returns the records that answer a question, aliases among them.
func (s *Server) lookup(ctx context.Context, q dns.Question) ([]dns.RR, error) {
	a := s.zone.answer(q)
	name, rrs := q.Name, a.rrs
	switch {
	case a.outside:
	case a.chase != "":
		name = a.chase
	case a.rcode == dns.RcodeServerFailure:
		return nil, fmt.Errorf("resolve %s: aliases without end", q.Name)
	default:
		return rrs, nil
	}
	if !s.forward.able() {
		return nil, fmt.Errorf("resolve %s: no upstream resolver for names outside %s", name, s.zone.name)
	}
	query := new(dns.Msg)
	query.Question = []dns.Question{q}
	answer, from, err := s.forward.exchange(ctx, query, name)
	if err != nil {
		return nil, fmt.Errorf("resolve %s: %w", name, err)
	}
	switch answer.Rcode {
	case dns.RcodeSuccess:
		return append(rrs, answer.Answer...), nil
	case dns.RcodeNameError:
		return nil, nil
	}
	return nil, fmt.Errorf("resolve %s: %s answered %s", name, from, dns.RcodeToString[answer.Rcode])
}
