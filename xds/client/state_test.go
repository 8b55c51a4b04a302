package client

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/xds/codec"
	"github.com/sluice-mesh/sluice/xds/peercred"
)

func mustEncode(t testing.TB, r mesh.Resource) []byte {
	t.Helper()
	packed, err := codec.Encode(r)
	if err != nil {
		t.Fatal(err)
	}
	return packed.Value
}

func peerOf(uid uint32) peercred.Peer { return peercred.Peer{UID: uid} }

func sampleState(t testing.TB) []byte {
	b := []byte(stateHeader)
	for _, r := range []record{
		{op: opPut, ref: mesh.Ref{Kind: mesh.KindWorkload, Key: "shop/a"}, version: "1", value: mustEncode(t, workload("a", "n"))},
		{op: opPut, ref: mesh.Ref{Kind: mesh.KindWorkload, Key: "shop/b"}, version: "1", value: mustEncode(t, workload("b", "n"))},
		{op: opDelete, ref: mesh.Ref{Kind: mesh.KindWorkload, Key: "shop/b"}},
		{op: opWant, ref: mesh.Ref{Kind: mesh.KindListener, Key: "service/shop/a/80"}},
		{op: opWant, ref: mesh.Ref{Kind: mesh.KindListener, Key: "service/shop/b/80"}},
		{op: opForget, ref: mesh.Ref{Kind: mesh.KindListener, Key: "service/shop/b/80"}},
		{op: opPut, ref: mesh.Ref{Kind: mesh.KindCertificate, Key: "shop/c"}, version: "1", value: []byte("never")},
		{op: opPut, ref: mesh.Ref{Kind: "later", Key: "x"}, version: "1"},
		{op: opReady},
	} {
		b = r.append(b)
	}
	return b
}

func TestStateRoundTrip(t *testing.T) {
	data := sampleState(t)
	records, sound, err := readState(data)
	if err != nil || sound != len(data) || len(records) != 9 {
		t.Fatalf("%d records, %d of %d bytes (%v)", len(records), sound, len(data), err)
	}
	again := []byte(stateHeader)
	for _, r := range records {
		again = r.append(again)
	}
	if !bytes.Equal(again, data) {
		t.Fatal("records read are not those written")
	}
	// Whatever is cut off, what stands before it is read.
	for n := len(stateHeader); n < len(data); n++ {
		part, sound, err := readState(data[:n])
		if sound > n || (err == nil) != (sound == n) || !reflect.DeepEqual(part, records[:len(part):len(part)]) && len(part) > 0 {
			t.Fatalf("%d bytes: %d records, %d sound (%v)", n, len(part), sound, err)
		}
	}
}

func load(v *view, records []record) (int, bool, []error) {
	return v.load(records, func(ref mesh.Ref, value []byte) (mesh.Resource, error) { return codec.Decode(ref.Kind, ref.Key, value) })
}

func TestLoadTakesWhatIsCovered(t *testing.T) {
	records, _, err := readState(sampleState(t))
	if err != nil {
		t.Fatal(err)
	}
	v := newView(true)
	if n, complete, bad := load(v, records); n != 0 || !complete || len(bad) != 0 {
		t.Fatalf("%d resources taken that nothing covers, complete %t, bad %v", n, complete, bad)
	}
	if s := v.kinds[mesh.KindListener].byName; len(s) != 1 || !s["service/shop/a/80"].wanted {
		t.Fatalf("wanted: %v", s)
	}
	v = newView(true)
	for _, ref := range []mesh.Ref{{Kind: mesh.KindWorkload, Key: "shop/*"}, {Kind: mesh.KindCertificate, Key: "*"}} {
		v.open(ref).initial = true
	}
	if n, _, bad := load(v, records); n != 1 || len(bad) != 0 || len(v.delta.Upserts) != 1 || v.delta.Upserts[0].Key() != "shop/a" {
		t.Fatalf("%d resources taken, delta %+v, bad %v", n, v.delta, bad)
	}
	if v.complete() {
		t.Fatal("the certificates are taken for answered")
	}
}

func FuzzLoadState(f *testing.F) {
	f.Add(sampleState(f))
	f.Add(sampleState(f)[:100])
	f.Add([]byte(stateHeader))
	f.Fuzz(func(t *testing.T, data []byte) {
		records, sound, err := readState(data)
		if err == nil && sound != len(data) {
			t.Fatalf("%d of %d bytes without an error", sound, len(data))
		}
		// The checksum hides the payload from the fuzzer, so it also gets there directly.
		if r, err := readRecord(data); err == nil {
			records = append(records, r)
		}
		v := newView(true)
		for _, kind := range mesh.Kinds {
			v.open(mesh.Ref{Kind: kind, Key: "*"}).initial = true
		}
		load(v, records)
		for _, r := range v.delta.Upserts {
			if got, ok := v.kinds[r.Kind()].resources.Get(r.Key()); !ok || got.current != r {
				t.Fatalf("%s %s is committed and not held", r.Kind(), r.Key())
			}
		}
	})
}
