package ring

import (
	"context"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/sluice-mesh/sluice/observe/flow"
	"github.com/sluice-mesh/sluice/observe/record"
)

// batch returns n records whose BytesIn count from first on, with a path of a length.
func batch(first, n, path int) *record.Batch {
	b := record.NewBatch("n", n*(path+64))
	var d record.Decoder
	for i := range n {
		raw := record.Append(nil, &flow.Flow{
			Time: time.Unix(int64(first+i), 0), Type: flow.TypeHTTP, BytesIn: uint64(first + i),
			HTTP: &flow.HTTP{Method: "GET", Path: string(make([]byte, path))},
		})
		f, _, err := d.Decode(raw)
		if err != nil {
			panic(err)
		}
		b.Add(raw, f, nil, nil)
	}
	return b
}

func numbers(t *testing.T, r *Ring, q Query) (out []uint64, lost uint64) {
	t.Helper()
	rd := r.NewReader(q)
	defer rd.Close()
	for {
		f, err := rd.Next(context.Background())
		if errors.Is(err, io.EOF) {
			return out, lost
		}
		if err != nil {
			t.Fatal(err)
		}
		if f.Type == flow.TypeLost {
			lost += f.Lost
			continue
		}
		out = append(out, f.BytesIn)
	}
}

// TestBatches: flows of batches and others are read in the order in which they came,
// also when the ring has gone around.
func TestBatches(t *testing.T) {
	r, err := New(64)
	if err != nil {
		t.Fatal(err)
	}
	next := 1
	for range 40 {
		r.Add(&flow.Flow{Time: time.Unix(int64(next), 0), Type: flow.TypeSocket, BytesIn: uint64(next)})
		next++
		r.AddBatch(batch(next, 7, 10))
		next += 7
	}
	got, lost := numbers(t, r, Query{})
	if len(got) != 64 || lost != 0 {
		t.Fatalf("%d flows, %d lost, want 64", len(got), lost)
	}
	for i, n := range got {
		if n != uint64(next-64+i) {
			t.Fatalf("flow %d is %d, want %d", i, n, next-64+i)
		}
	}
	if got, _ := numbers(t, r, Query{Last: 3, Match: func(f *flow.Flow) bool { return f.Type == flow.TypeSocket }}); len(got) != 3 || got[2] != uint64(next-8) {
		t.Errorf("the last of a kind: %v", got)
	}
	if len(r.batches)-r.firstHeld > 11 {
		t.Errorf("%d batches are held for 64 flows", len(r.batches)-r.firstHeld)
	}
}

// TestBatchBytes: long records make the ring hold fewer, and what it lets go of is
// neither shown nor kept.
func TestBatchBytes(t *testing.T) {
	r, err := New(1 << 12)
	if err != nil {
		t.Fatal(err)
	}
	r.maxBytes = 100 << 10
	next := 1
	for range 100 {
		r.AddBatch(batch(next, 10, 1000))
		next += 10
	}
	got, lost := numbers(t, r, Query{})
	if len(got) < 50 || len(got) > 100 || lost != 0 {
		t.Fatalf("%d flows of 1 kB in 100 kB, %d lost", len(got), lost)
	}
	if got[0] != uint64(next-len(got)) || got[len(got)-1] != uint64(next-1) {
		t.Errorf("flows %d to %d, want the newest", got[0], got[len(got)-1])
	}
	if r.bytes > r.maxBytes {
		t.Errorf("%d bytes are held, the bound is %d", r.bytes, r.maxBytes)
	}
	held := 0
	for i := range r.slots {
		if r.slots[i].batch.Load() != nil {
			held++
		}
	}
	if held != len(got) || r.Stats().Held != len(got) {
		t.Errorf("%d slots and %d flows by count hold %d flows", held, r.Stats().Held, len(got))
	}
}

// TestAddBatchDoesNotAllocate: a flow costs no memory of its own before it is read.
func TestAddBatchDoesNotAllocate(t *testing.T) {
	r, err := New(1 << 10)
	if err != nil {
		t.Fatal(err)
	}
	b := batch(1, 100, 10)
	for range 20 {
		r.AddBatch(b)
	}
	if n := testing.AllocsPerRun(100, func() { r.AddBatch(b) }); n > 0.5 {
		t.Errorf("%v allocations for 100 flows", n)
	}
}
