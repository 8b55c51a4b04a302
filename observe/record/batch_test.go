package record_test

import (
	"reflect"
	"testing"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
	"github.com/sluice-mesh/sluice/observe/record"
)

// TestBatch: a batch gives the flows that were put into it, named as its receiver
// says, and its heads are theirs.
func TestBatch(t *testing.T) {
	web := &mesh.Workload{Name: mesh.Name{Namespace: "shop", Name: "receiver-says"}, Labels: map[string]string{"app": "web"}}
	b := record.NewBatch("node", 64)
	var d record.Decoder
	var want []flow.Flow
	for _, f := range flows() {
		raw := record.Append(nil, &f)
		got, n, err := d.Decode(raw)
		if err != nil || n != len(raw) || !reflect.DeepEqual(*got, f) {
			t.Fatalf("decoded in place: %+v, %d, %v; want %+v", got, n, err, f)
		}
		b.Add(raw, got, web, nil)
		f.Node = "node"
		if f.Type == flow.TypeLost {
			f.LostSource = flow.LostByProxy
		} else {
			f.Lost, f.LostSource = 0, ""
			f.Source.Workload, f.Source.Labels = web.Name, web.Labels
			f.Destination.Workload, f.Destination.Labels = mesh.Name{}, nil
		}
		want = append(want, f)
	}
	for i := range want {
		// All are read twice: a flow belongs to who asked for it.
		first, second := b.Flow(i), b.Flow(i)
		if !reflect.DeepEqual(*second, want[i]) {
			t.Errorf("flow %d is %+v, want %+v", i, second, want[i])
		}
		first.Detail = "changed"
		if first.HTTP != nil {
			first.HTTP.Path = "changed"
			if second.HTTP.Path == "changed" {
				t.Error("two readers share a flow")
			}
		}
		h := b.Head(i)
		if h.Type != want[i].Type || h.Verdict != want[i].Verdict || h.Reason != want[i].Reason || h.Protocol != want[i].Protocol || h.Lost != want[i].Lost {
			t.Errorf("head %d is %+v of %+v", i, h, want[i])
		}
	}
	if b.Len() != len(want) || b.Bytes() < 64 {
		t.Errorf("%d records, %d bytes", b.Len(), b.Bytes())
	}
}

// TestDecoderDoesNotAllocate: a request's record is checked without memory.
func TestDecoderDoesNotAllocate(t *testing.T) {
	f := flows()["http"]
	f.Source.Labels, f.Destination.Labels = nil, nil
	raw := record.Append(nil, &f)
	var d record.Decoder
	if n := testing.AllocsPerRun(100, func() {
		if _, _, err := d.Decode(raw); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
