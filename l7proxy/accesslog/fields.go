package accesslog

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// Options say which entries a log has and what each says.
type Options struct {
	Format Format
	// Fields are what an entry says, in their order; none: everything that is known.
	// A name is one of Fields(), or "header." and the lower-case name of a request
	// header field.
	Fields []string
	// Template is a line of text with {FIELD} where a field's value goes, "{{" for a
	// brace, and - for a value that there is not. For the format Text, in place of
	// Fields.
	Template string
	// MinStatus and MinDuration leave entries out that went well: with either, an
	// entry is written if its status or duration is as high, or if it has a reason.
	MinStatus   int
	MinDuration time.Duration
}

// field is one of the fixed fields.
type field uint8

const (
	fieldTime field = iota
	fieldNode
	fieldType
	fieldVerdict
	fieldReason
	fieldDetail
	fieldSource
	fieldSourceWorkload
	fieldDestination
	fieldDestinationWorkload
	fieldDestinationService
	fieldOriginal
	fieldProtocol
	fieldIngress
	fieldBytesIn
	fieldBytesOut
	fieldDuration
	fieldMethod
	fieldAuthority
	fieldPath
	fieldProto
	fieldStatus
	fieldGRPC
	fieldRoute
	fieldRule
	fieldRuleName
	fieldMirror
	fieldTries
	fieldTrace
	fieldQuery
	fieldQueryType
	fieldRCode
	fieldAnswer
	fieldLost
	fieldLostSource
	fieldPathOnly // what follows is written only if asked for
	fieldDurationMS
	fieldHeader
)

// fieldNames are the words of the fixed fields, in the order in which JSON has them
// unless told otherwise.
var fieldNames = [...]string{
	"time", "node", "type", "verdict", "reason", "detail", "source", "source_workload", "destination", "destination_workload",
	"destination_service", "original", "protocol", "ingress", "bytes_in", "bytes_out", "duration_ns", "method", "authority", "path",
	"proto", "status", "grpc_status", "route", "rule", "rule_name", "mirror", "tries", "trace_id", "query", "query_type", "rcode", "answer",
	"lost", "lost_source", "path_only", "duration_ms",
}

// Fields returns the names of all fixed fields.
func Fields() []string { return slices.Clone(fieldNames[:]) }

// item is one part of an entry: text, or a field.
type item struct {
	text   string // before the field's value
	name   string // of the field
	field  field
	header string // fieldHeader: its name
	last   bool   // text alone
}

// layout is a compiled Options.
type layout struct {
	Options
	items []item // empty: Text with everything
}

// compile says what is wrong with the options, and how to put it right.
func (o Options) compile() (*layout, error) {
	l := &layout{Options: o}
	if o.Format != JSON && o.Format != Text {
		return nil, errors.New("access log: neither JSON nor text")
	}
	if o.MinStatus < 0 || o.MinStatus > 599 {
		return nil, fmt.Errorf("access log: a least status of %d, want 100 to 599, or 0 for none", o.MinStatus)
	}
	if o.MinDuration < 0 {
		return nil, fmt.Errorf("access log: a least duration of %s is negative", o.MinDuration)
	}
	switch {
	case o.Template != "" && len(o.Fields) > 0:
		return nil, errors.New("access log: a template and a list of fields; want one of them")
	case o.Template != "" && o.Format != Text:
		return nil, errors.New("access log: a template is for the format text")
	case o.Template != "":
		return l, l.parseTemplate(o.Template)
	}
	names := o.Fields
	if len(names) == 0 && o.Format == JSON {
		names = fieldNames[:fieldPathOnly]
	}
	for i, name := range names {
		it, err := fieldItem(name)
		if err != nil {
			return nil, err
		}
		if slices.Contains(names[:i], name) {
			return nil, fmt.Errorf("access log: the field %q is named twice", name)
		}
		l.items = append(l.items, it)
	}
	return l, nil
}

func fieldItem(name string) (item, error) {
	if header, ok := strings.CutPrefix(name, "header."); ok {
		switch {
		case header == "" || header != strings.ToLower(header) || strings.Trim(header, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "":
			return item{}, fmt.Errorf("access log: %q: want header. and the name of a header field in lower case", name)
		case secret(header):
			return item{}, fmt.Errorf("access log: the header field %q holds secrets, which are never logged", header)
		}
		return item{name: name, field: fieldHeader, header: header}, nil
	}
	i := slices.Index(fieldNames[:], name)
	if i < 0 {
		return item{}, fmt.Errorf("access log: unknown field %q, want header.NAME or one of %s", name, strings.Join(fieldNames[:], ", "))
	}
	return item{name: name, field: field(i)}, nil
}

// secret reports whether a header field is known to hold what must not be written
// down, by its name or by a word in it.
func secret(header string) bool {
	for _, word := range []string{"auth", "cookie", "token", "secret", "password", "passwd", "credential", "api-key", "apikey", "session", "signature", "client-cert"} {
		if strings.Contains(header, word) {
			return true
		}
	}
	return false
}

func (l *layout) parseTemplate(t string) error {
	if strings.ContainsAny(t, "\n\r") {
		return errors.New("access log: a template is one line")
	}
	text := ""
	for t != "" {
		i := strings.IndexByte(t, '{')
		if i < 0 {
			break
		}
		text, t = text+t[:i], t[i+1:]
		if strings.HasPrefix(t, "{") {
			text, t = text+"{", t[1:]
			continue
		}
		name, rest, ok := strings.Cut(t, "}")
		if !ok {
			return fmt.Errorf("access log: %q in the template does not end; write {{ for a brace", "{"+t)
		}
		it, err := fieldItem(name)
		if err != nil {
			return err
		}
		it.text = text
		l.items = append(l.items, it)
		text, t = "", rest
	}
	if text += t; text != "" {
		l.items = append(l.items, item{text: text, last: true})
	}
	if len(l.items) == 0 || !slices.ContainsFunc(l.items, func(it item) bool { return !it.last }) {
		return errors.New("access log: a template without a field, such as {status}")
	}
	return nil
}

// wants reports whether an entry is to be written.
func (l *layout) wants(f *flow.Flow) bool {
	if l.MinStatus == 0 && l.MinDuration == 0 || f.Reason != flow.ReasonNone {
		return true
	}
	return l.MinStatus > 0 && f.HTTP != nil && f.HTTP.Status >= l.MinStatus || l.MinDuration > 0 && f.Duration >= l.MinDuration
}

// append appends the entry of a flow, with its line feed. It allocates only to grow b.
// head is that of the request, or nil.
func (l *layout) append(b []byte, f *flow.Flow, head *message.Head) []byte {
	switch {
	case l.Template != "":
		return l.appendTemplate(b, f, head)
	case len(l.items) == 0:
		return appendText(b, f)
	}
	json := l.Format == JSON
	if json {
		b = append(b, '{')
	}
	first := true
	for i := range l.items {
		it := &l.items[i]
		start := len(b)
		if !first {
			b = append(b, l.separator())
		}
		if json {
			b = append(b, '"')
			b = append(b, it.name...)
			b = append(b, '"', ':')
		} else {
			b = append(b, it.name...)
			b = append(b, '=')
		}
		var ok bool
		if b, ok = appendValue(b, it, f, head, json); !ok {
			b = b[:start]
			continue
		}
		first = false
	}
	if json {
		b = append(b, '}')
	}
	return append(b, '\n')
}

func (l *layout) separator() byte {
	if l.Format == JSON {
		return ','
	}
	return ' '
}

func (l *layout) appendTemplate(b []byte, f *flow.Flow, head *message.Head) []byte {
	for i := range l.items {
		it := &l.items[i]
		b = append(b, it.text...)
		if it.last {
			continue
		}
		start := len(b)
		var ok bool
		if b, ok = appendValue(b, it, f, head, false); !ok {
			b = append(b[:start], '-')
		}
	}
	return append(b, '\n')
}

// appendValue appends the value of a field, and reports false if there is none.
func appendValue(b []byte, it *item, f *flow.Flow, head *message.Head, json bool) ([]byte, bool) {
	text := func(s string) ([]byte, bool) {
		if s == "" {
			return b, false
		}
		return appendString(b, s, json), true
	}
	number := func(v uint64) ([]byte, bool) {
		return strconv.AppendUint(b, v, 10), v != 0
	}
	switch it.field {
	case fieldTime:
		if !json {
			return appendTime(b, f.Time), true
		}
		return append(appendTime(append(b, '"'), f.Time), '"'), true
	case fieldNode:
		return text(f.Node)
	case fieldType:
		return appendWord(b, f.Type.String(), json), true
	case fieldVerdict:
		return appendWord(b, f.Verdict.String(), json), true
	case fieldReason:
		if f.Reason == flow.ReasonNone {
			return b, false
		}
		return appendWord(b, f.Reason.String(), json), true
	case fieldDetail:
		return text(f.Detail)
	case fieldSource:
		return address(b, f.Source.AddrPort, json)
	case fieldSourceWorkload:
		return appendNamed(b, f.Source.Workload, json)
	case fieldDestination:
		return address(b, f.Destination.AddrPort, json)
	case fieldDestinationWorkload:
		return appendNamed(b, f.Destination.Workload, json)
	case fieldDestinationService:
		return appendNamed(b, f.Destination.Service, json)
	case fieldOriginal:
		return address(b, f.Original, json)
	case fieldProtocol:
		if f.Protocol == 0 {
			return b, false
		}
		if !json {
			return appendProtocol(b, f.Protocol), true
		}
		return append(appendProtocol(append(b, '"'), f.Protocol), '"'), true
	case fieldIngress:
		return append(b, "true"...), f.Ingress
	case fieldBytesIn:
		return number(f.BytesIn)
	case fieldBytesOut:
		return number(f.BytesOut)
	case fieldDuration:
		return strconv.AppendInt(b, int64(f.Duration), 10), f.Duration != 0
	case fieldDurationMS:
		return strconv.AppendFloat(b, float64(f.Duration)/float64(time.Millisecond), 'f', 3, 64), true
	case fieldLost:
		return number(f.Lost)
	case fieldLostSource:
		return text(f.LostSource)
	case fieldHeader:
		if head == nil {
			return b, false
		}
		v, ok := head.Get(it.header)
		if !ok || len(v) == 0 {
			return b, false
		}
		return text(unsafeString(v))
	}
	switch {
	case it.field >= fieldQuery && it.field <= fieldAnswer && f.DNS != nil:
		return appendDNS(b, it.field, f.DNS, json)
	case f.HTTP != nil:
		return appendHTTP(b, it.field, f.HTTP, json)
	}
	return b, false
}

func appendHTTP(b []byte, of field, h *flow.HTTP, json bool) ([]byte, bool) {
	text := func(s string) ([]byte, bool) {
		if s == "" {
			return b, false
		}
		return appendString(b, s, json), true
	}
	switch of {
	case fieldMethod:
		return text(h.Method)
	case fieldAuthority:
		return text(h.Authority)
	case fieldPath:
		return text(h.Path)
	case fieldPathOnly:
		path, _, _ := strings.Cut(h.Path, "?")
		return text(path)
	case fieldProto:
		return text(h.Proto)
	case fieldStatus:
		return strconv.AppendInt(b, int64(h.Status), 10), true
	case fieldGRPC:
		return text(h.GRPC)
	case fieldRoute:
		return text(h.Route)
	case fieldRule:
		return strconv.AppendInt(b, int64(h.Rule), 10), h.Route != ""
	case fieldRuleName:
		return text(h.RuleName)
	case fieldMirror:
		return append(b, "true"...), h.Mirror
	case fieldTries:
		return strconv.AppendInt(b, int64(h.Tries), 10), h.Tries != 0
	case fieldTrace:
		if h.TraceID.IsZero() {
			return b, false
		}
		if !json {
			b, _ = h.TraceID.AppendText(b)
			return b, true
		}
		b, _ = h.TraceID.AppendText(append(b, '"'))
		return append(b, '"'), true
	}
	return b, false
}

func appendDNS(b []byte, of field, d *flow.DNS, json bool) ([]byte, bool) {
	switch of {
	case fieldQuery:
		return appendString(b, d.Query, json), d.Query != ""
	case fieldQueryType:
		return appendString(b, d.Type, json), d.Type != ""
	case fieldRCode:
		return appendString(b, d.RCode, json), d.RCode != ""
	case fieldAnswer:
		if json {
			b = append(b, '[')
		}
		for i, a := range d.Answer {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendString(b, a, json)
		}
		if json {
			b = append(b, ']')
		}
		return b, len(d.Answer) > 0
	}
	return b, false
}

// appendWord appends a word of ours.
func appendWord(b []byte, word string, json bool) []byte {
	if !json {
		return append(b, word...)
	}
	b = append(b, '"')
	b = append(b, word...)
	return append(b, '"')
}

func address(b []byte, a netip.AddrPort, json bool) ([]byte, bool) {
	if !a.IsValid() {
		return b, false
	}
	if !json {
		return appendAddr(b, a), true
	}
	return append(appendAddr(append(b, '"'), a), '"'), true
}

func appendNamed(b []byte, n mesh.Name, json bool) ([]byte, bool) {
	if n.IsZero() {
		return b, false
	}
	if !json {
		return appendName(b, n, false), true
	}
	return append(appendName(append(b, '"'), n, true), '"'), true
}
