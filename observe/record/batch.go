package record

import (
	"time"
	"unsafe"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// Decoder is Decode without its memory: the flow that it returns, and all that the
// flow refers to, is valid until the next call and as long as the bytes stay as they
// are. The zero Decoder is ready. It is used by one goroutine at a time.
type Decoder struct {
	flow flow.Flow
	http flow.HTTP
	dns  flow.DNS
}

// Decode is like the function Decode.
func (d *Decoder) Decode(b []byte) (f *flow.Flow, n int, err error) {
	n, err = Size(b)
	if err != nil {
		return nil, 0, err
	}
	if len(b) < n {
		return nil, 0, ErrShort
	}
	body := b[lengthBytes:n]
	d.flow = flow.Flow{}
	in := decoder{rest: unsafe.String(unsafe.SliceData(body), len(body)), httpAt: &d.http, dnsAt: &d.dns}
	if err := in.whole(&d.flow); err != nil {
		return nil, n, err
	}
	return &d.flow, n, nil
}

// Batch is records that were checked, in the order in which they came, with what
// their receiver knows of each. Whoever asks for a flow pays for it: until then a
// record is its bytes. A batch does not change once it was handed on.
type Batch struct {
	node  string
	raw   []byte
	items []item
}

type item struct {
	at           uint32 // where the record is in raw
	time         time.Time
	source, dest *mesh.Workload
	head         Head
}

// Head is what there is to know of a flow without its record.
type Head struct {
	Type     flow.Type
	Verdict  flow.Verdict
	Reason   flow.Reason
	Protocol mesh.Protocol
	// RCode is that of a DNS flow, as it came.
	RCode string
	Lost  uint64 // flow.TypeLost
}

// NewBatch returns a batch of a node's flows with room for records of so many bytes.
func NewBatch(node string, bytes int) *Batch {
	const perRecord = 160 // about what a request has
	return &Batch{node: node, raw: make([]byte, 0, bytes), items: make([]item, 0, bytes/perRecord+1)}
}

// Add appends a record that Decoder took to f, whose time and loss count as they are
// in f now; of its ends the workloads given, nil for none, count.
func (b *Batch) Add(rec []byte, f *flow.Flow, source, dest *mesh.Workload) {
	at := len(b.raw)
	b.raw = append(b.raw, rec...)
	it := item{at: uint32(at), time: f.Time, source: source, dest: dest,
		head: Head{Type: f.Type, Verdict: f.Verdict, Reason: f.Reason, Protocol: f.Protocol}}
	if f.Type == flow.TypeLost {
		it.head.Lost = f.Lost
	}
	if f.DNS != nil {
		it.head.RCode = "other"
		for _, known := range rcodes {
			if f.DNS.RCode == known {
				it.head.RCode = known
			}
		}
	}
	b.items = append(b.items, it)
}

// rcodes are the words that a Head's RCode can be, besides "other" (RFC 1035 §4.1.1,
// RFC 2136 §2.2).
var rcodes = [...]string{"NOERROR", "FORMERR", "SERVFAIL", "NXDOMAIN", "NOTIMP", "REFUSED"}

// Len returns the number of records.
func (b *Batch) Len() int { return len(b.items) }

// Bytes returns about how much memory the batch takes.
func (b *Batch) Bytes() int { return cap(b.raw) + cap(b.items)*int(unsafe.Sizeof(item{})) }

// Head returns what is known of flow i.
func (b *Batch) Head(i int) Head { return b.items[i].head }

// Flow returns flow i, which is the caller's; its texts are the batch's bytes.
func (b *Batch) Flow(i int) *flow.Flow {
	it := &b.items[i]
	var d Decoder
	f, _, err := d.Decode(b.raw[it.at:])
	if err != nil {
		// It was decoded before it was added.
		return &flow.Flow{Time: it.time, Node: b.node, Type: it.head.Type}
	}
	f.Time, f.Node = it.time, b.node
	if f.Type == flow.TypeLost {
		f.Lost, f.LostSource = it.head.Lost, flow.LostByProxy
		return f
	}
	f.Lost, f.LostSource = 0, ""
	name(&f.Source, it.source)
	name(&f.Destination, it.dest)
	return f
}

func name(p *flow.Peer, w *mesh.Workload) {
	p.Workload, p.Labels = mesh.Name{}, nil
	if w != nil {
		p.Workload, p.Labels = w.Name, w.Labels
	}
}
