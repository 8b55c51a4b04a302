package server

import (
	"cmp"
	"slices"
	"time"

	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/xds/nametree"
)

// Status is a snapshot of the server.
type Status struct {
	// Published says whether the first state has been published.
	Published bool              `json:"published"`
	Resources map[mesh.Kind]int `json:"resources"`
	Clients   []ClientStatus    `json:"clients"` // ordered by node and role
}

// ClientStatus is one connected client.
type ClientStatus struct {
	Client
	UID   int64        `json:"uid"` // of the peer on a unix socket, else -1
	Since time.Time    `json:"since"`
	Kinds []KindStatus `json:"kinds"` // those subscribed to, in the order of mesh.Kinds, derived ones last
}

// KindStatus is what a client has of a kind.
type KindStatus struct {
	Kind mesh.Kind `json:"kind"`
	// Patterns subscribed to, and the number of plain names.
	Patterns []string `json:"patterns,omitempty"`
	Names    int      `json:"names"`
	// Sent resources the client holds or refused; Acked of them it accepted; Pending
	// changes wait to be sent.
	Sent    int `json:"sent"`
	Acked   int `json:"acked"`
	Pending int `json:"pending"`
	// Rejected resources, ordered by key.
	Rejected []Rejection `json:"rejected,omitempty"`
}

// Rejection is a version of a resource that a client refused.
type Rejection struct {
	Key     string `json:"key"`
	Version string `json:"version"`
	Text    string `json:"text"`
}

// Status returns a snapshot. It costs O(what all clients hold).
func (s *Server) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := Status{Published: s.published, Resources: map[mesh.Kind]int{}}
	for _, kind := range mesh.Kinds {
		out.Resources[kind] = s.types[kind].resources.Len()
	}
	for st := range s.streams {
		c := ClientStatus{Client: st.client, UID: st.uid, Since: st.since}
		for _, kind := range slices.Concat(mesh.Kinds[:], derivedKinds) {
			if sub := st.types[kind]; sub != nil {
				c.Kinds = append(c.Kinds, sub.status())
			}
		}
		out.Clients = append(out.Clients, c)
	}
	slices.SortFunc(out.Clients, func(a, b ClientStatus) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Role, b.Role), a.Since.Compare(b.Since))
	})
	return out
}

func (s *subscriptions) status() KindStatus {
	k := KindStatus{Kind: s.typ.kind, Names: len(s.names), Sent: len(s.has), Pending: len(s.dirty) + len(s.gone)}
	for prefix := range s.prefixes {
		k.Patterns = append(k.Patterns, nametree.Pattern(prefix))
	}
	slices.Sort(k.Patterns)
	for _, sent := range s.has {
		if sent.acked {
			k.Acked++
		}
	}
	for _, r := range s.rejected {
		k.Rejected = append(k.Rejected, r)
	}
	slices.SortFunc(k.Rejected, func(a, b Rejection) int { return cmp.Compare(a.Key, b.Key) })
	return k
}

// ResourceVersion is a published resource.
type ResourceVersion struct {
	Key     string `json:"key"`
	Version string `json:"version"`
	Bytes   int    `json:"bytes"`
}

// Resources returns the published resources of a kind, ordered by key.
func (s *Server) Resources(kind mesh.Kind) []ResourceVersion {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.types[kind]
	if t == nil {
		return nil
	}
	out := make([]ResourceVersion, 0, t.resources.Len())
	for name, r := range t.resources.Below("") {
		out = append(out, ResourceVersion{Key: name, Version: r.GetVersion(), Bytes: len(r.GetResource().GetValue())})
	}
	slices.SortFunc(out, func(a, b ResourceVersion) int { return cmp.Compare(a.Key, b.Key) })
	return out
}

// ClientVersion is a resource that a client was sent.
type ClientVersion struct {
	Kind    mesh.Kind `json:"kind"`
	Key     string    `json:"key"`
	Version string    `json:"version"`
	// Acked: the client accepted it. Rejected: why it did not.
	Acked    bool   `json:"acked"`
	Rejected string `json:"rejected,omitempty"`
}

// ClientVersions returns what a client was sent last, ordered by kind and key;
// nil when it is not connected.
func (s *Server) ClientVersions(c Client) []ClientVersion {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []ClientVersion
	for st := range s.streams {
		if st.client != c {
			continue
		}
		for kind, sub := range st.types {
			for name, sent := range sub.has {
				out = append(out, ClientVersion{kind, name, sent.version, sent.acked, sub.rejected[name].Text})
			}
		}
	}
	slices.SortFunc(out, func(a, b ClientVersion) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Key, b.Key))
	})
	return out
}
