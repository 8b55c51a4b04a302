package codec

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"

	"github.com/sluice-mesh/sluice/mesh"
	sluicev1 "github.com/sluice-mesh/sluice/xds/api/sluice/v1"
)

func encodeWorkload(w *mesh.Workload) (*sluicev1.Workload, error) {
	if err := checkName(w.Name); err != nil {
		return nil, below("Name", err)
	}
	addresses, err := addressBytes(w.Addresses)
	if err != nil {
		return nil, below("Addresses", err)
	}
	return &sluicev1.Workload{
		Namespace:      w.Name.Namespace,
		Name:           w.Name.Name,
		ServiceAccount: w.ServiceAccount,
		Labels:         w.Labels,
		Node:           w.Node,
		Addresses:      addresses,
		Ready:          w.Ready,
	}, nil
}

func decodeWorkload(m *sluicev1.Workload) (*mesh.Workload, error) {
	w := &mesh.Workload{
		Name:           mesh.Name{Namespace: m.GetNamespace(), Name: m.GetName()},
		ServiceAccount: m.GetServiceAccount(),
		Node:           m.GetNode(),
		Ready:          m.GetReady(),
	}
	if len(m.GetLabels()) > 0 {
		w.Labels = maps.Clone(m.GetLabels())
	}
	if err := checkName(w.Name); err != nil {
		return nil, below("name", err)
	}
	var err error
	if w.Addresses, err = addressesOf(m.GetAddresses()); err != nil {
		return nil, below("addresses", err)
	}
	return w, nil
}

// checkName refuses names from which "namespace/name" could not be read back.
func checkName(n mesh.Name) error {
	switch {
	case n.Namespace == "":
		return errors.New("no namespace")
	case n.Name == "":
		return errors.New("no name")
	case strings.Contains(n.Namespace, "/") || strings.Contains(n.Name, "/"):
		return errors.New("contains a slash")
	}
	return nil
}

// checkAddress refuses what four or sixteen bytes cannot say.
func checkAddress(a netip.Addr) error {
	switch {
	case !a.IsValid():
		return errors.New("no address")
	case a.Zone() != "":
		return errors.New("address with a zone")
	}
	return nil
}

func addressBytes(addrs []netip.Addr) ([][]byte, error) {
	var out [][]byte
	for _, a := range addrs {
		if err := checkAddress(a); err != nil {
			return nil, err
		}
		out = append(out, a.AsSlice())
	}
	return out, nil
}

func addressesOf(raw [][]byte) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, b := range raw {
		a, ok := netip.AddrFromSlice(b)
		if !ok {
			return nil, fmt.Errorf("address of %d bytes", len(b))
		}
		out = append(out, a)
	}
	return out, nil
}
