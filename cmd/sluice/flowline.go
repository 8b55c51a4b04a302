package main

import (
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// flowLines writes flows as lines for a person:
//
//	20:31:07.123 shop/web → shop/reviews:80 (10.77.0.5:8080) HTTP/1.1 GET /reviews/7 200 3.2ms forwarded route HTTPRoute/shop/reviews#0
type flowLines struct {
	now     time.Time // flows of another day show theirs
	colored bool
}

// append appends the line of a flow.
func (l *flowLines) append(dst []byte, f *flow.Flow) []byte {
	dst = l.time(dst, f.Time)
	if f.Type == flow.TypeLost {
		text := fmt.Sprintf(" lost %d events: %s", f.Lost, lossText(f.LostSource))
		if f.LostSource == flow.LostByRestart {
			text = " lost an unknown number of events: the agent restarted"
			if f.Detail != "" {
				text += " (" + printable(f.Detail) + ")"
			}
		}
		return append(append(dst, paint(text, yellow, l.colored)...), '\n')
	}
	dst = append(dst, ' ')
	dst = append(dst, paint(source(f), bold, l.colored)...)
	dst = append(dst, " → "...)
	dst = append(dst, paint(destination(f), bold, l.colored)...)
	dst = append(dst, endpoint(f)...)
	switch {
	case f.HTTP != nil:
		dst = appendHTTP(dst, f)
	case f.DNS != nil:
		dst = appendDNS(dst, f)
	case f.Type == flow.TypeTCP && f.BytesIn|f.BytesOut|uint64(f.Duration) != 0:
		dst = fmt.Appendf(dst, " %s in %s out %s %s", f.Protocol, bytesWord(f.BytesIn), bytesWord(f.BytesOut), durationWord(f.Duration))
	case f.Protocol != 0:
		dst = fmt.Appendf(dst, " %s", f.Protocol)
	}
	dst = append(dst, ' ')
	dst = append(dst, l.verdict(f)...)
	if f.HTTP != nil && f.HTTP.Mirror {
		dst = append(dst, " mirror"...)
	}
	if f.HTTP != nil && f.HTTP.Route != "" {
		dst = fmt.Appendf(dst, " route %s#%d", printable(f.HTTP.Route), f.HTTP.Rule)
		if f.HTTP.RuleName != "" {
			dst = fmt.Appendf(dst, " (%s)", printable(f.HTTP.RuleName))
		}
	}
	if f.HTTP != nil && !f.HTTP.TraceID.IsZero() {
		dst = fmt.Appendf(dst, " trace %s", f.HTTP.TraceID)
	}
	return append(dst, '\n')
}

func (l *flowLines) time(dst []byte, t time.Time) []byte {
	t = t.In(l.now.Location())
	y, m, d := t.Date()
	ny, nm, nd := l.now.Date()
	if y != ny || m != nm || d != nd {
		dst = t.AppendFormat(dst, "2006-01-02 ")
	}
	return t.AppendFormat(dst, "15:04:05.000")
}

// lossText says where events were lost, in a sentence.
func lossText(source string) string {
	switch source {
	case flow.LostByKernel:
		return "the kernel's event buffer was full"
	case flow.LostByProxy:
		return "the node proxy could not hand them over"
	case flow.LostByRing:
		return "they came faster than they were read"
	}
	return "lost by " + printable(source)
}

// source names who opened the connection: the workload, or the address and port.
func source(f *flow.Flow) string {
	if w := f.Source.Workload; !w.IsZero() {
		return printable(w.String())
	}
	return address(f.Source.AddrPort)
}

// destination names what was dialled: the service, the workload or the address,
// with the port that was dialled.
func destination(f *flow.Flow) string {
	dialled := dialled(f)
	name := f.Destination.Service
	if name.IsZero() && !f.Original.IsValid() {
		name = f.Destination.Workload
	}
	if name.IsZero() {
		return address(dialled)
	}
	return printable(name.String()) + ":" + strconv.Itoa(int(dialled.Port()))
}

func dialled(f *flow.Flow) netip.AddrPort {
	if f.Original.IsValid() {
		return f.Original
	}
	return f.Destination.AddrPort
}

// endpoint names who was reached, in parentheses, unless the destination says it
// already or nobody was.
func endpoint(f *flow.Flow) string {
	reached := f.Destination.AddrPort
	service := f.Destination.Service != mesh.Name{}
	if !reached.IsValid() || reached == dialled(f) && !service {
		return ""
	}
	if service && reached == f.Original {
		return ""
	}
	if w := f.Destination.Workload; !w.IsZero() {
		return " (" + printable(w.String()) + " " + address(reached) + ")"
	}
	return " (" + address(reached) + ")"
}

func address(a netip.AddrPort) string {
	if !a.IsValid() {
		return "unknown"
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()).String()
}

func appendHTTP(dst []byte, f *flow.Flow) []byte {
	h := f.HTTP
	authority := ""
	if f.Ingress {
		authority = printable(h.Authority)
	}
	status := "-"
	if h.Status != 0 {
		status = strconv.Itoa(h.Status)
	}
	dst = fmt.Appendf(dst, " %s %s %s%s %s", printable(h.Proto), printable(h.Method), authority, printable(h.Path), status)
	if h.GRPC != "" {
		dst = fmt.Appendf(dst, " grpc %s", printable(h.GRPC))
	}
	dst = fmt.Appendf(dst, " %s", durationWord(f.Duration))
	if h.Tries > 1 {
		dst = fmt.Appendf(dst, " %d tries", h.Tries)
	}
	return dst
}

func appendDNS(dst []byte, f *flow.Flow) []byte {
	answer := ""
	if len(f.DNS.Answer) > 0 {
		answer = " " + printable(abridged(f.DNS.Answer))
	}
	return fmt.Appendf(dst, " DNS %s %s %s%s %s", printable(f.DNS.Type), printable(f.DNS.Query), printable(f.DNS.RCode), answer, durationWord(f.Duration))
}

// verdict returns the verdict with its reason and detail, coloured.
func (l *flowLines) verdict(f *flow.Flow) string {
	color := green
	switch f.Verdict {
	case flow.VerdictDropped, flow.VerdictError:
		color = red
	case flow.VerdictRedirected, flow.VerdictTranslated:
		color = cyan
	}
	text := f.Verdict.String()
	if f.Reason != flow.ReasonNone {
		text += " " + f.Reason.String()
	}
	text = paint(text, color, l.colored)
	if f.Detail != "" {
		text += " (" + printable(f.Detail) + ")"
	}
	return text
}
