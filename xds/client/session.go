package client

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sluice-mesh/sluice/mesh"
	sluicev1 "github.com/sluice-mesh/sluice/xds/api/sluice/v1"
	"github.com/sluice-mesh/sluice/xds/codec"
	"github.com/sluice-mesh/sluice/xds/nametree"
	"github.com/sluice-mesh/sluice/xds/peercred"
)

// featureCollections asks the server to say when it has answered for a pattern.
const featureCollections = "sluice.dev/collections"

// maxResponseBytes bounds a response, which ends at one resource beyond 1 MiB.
const maxResponseBytes = 64 << 20

// maxNackText bounds the message of a NACK; the details name every resource.
const maxNackText = 1 << 10

// session is one stream.
type session struct {
	client *Client
	stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	opened map[mesh.Kind]bool // a first request was sent
	named  bool               // the node was sent
}

// session connects and follows the control plane until that fails. answered says
// whether there was a response.
func (c *Client) session(ctx context.Context) (answered bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	conn, err := grpc.NewClient("passthrough:///"+c.cfg.Target,
		grpc.WithContextDialer(func(ctx context.Context, path string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}),
		grpc.WithTransportCredentials(peercred.Credentials(trusted)),
		grpc.WithAuthority("sluice"),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxResponseBytes)),
	)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return false, err
	}
	s := &session{client: c, stream: stream, opened: map[mesh.Kind]bool{}}
	responses := make(chan *discoveryv3.DeltaDiscoveryResponse)
	failed := make(chan error, 1)
	go func() {
		for {
			r, err := stream.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case responses <- r:
			case <-ctx.Done():
				return
			}
		}
	}()
	c.grant()
	c.apply()
	if err := s.flush(); err != nil {
		return false, err
	}
	for {
		select {
		case <-ctx.Done():
			return answered, ctx.Err()
		case err := <-failed:
			return answered, err
		case <-c.wake:
			c.grant()
			c.apply()
			if err := s.flush(); err != nil {
				return answered, err
			}
		case r := <-responses:
			if !answered {
				answered = true
				c.mu.Lock()
				c.connected, c.fromDisk, c.lastError = true, false, ""
				c.mu.Unlock()
				c.metrics.connected.Set(1)
				c.log.Info("control plane connected", "target", c.cfg.Target)
			}
			if err := s.receive(r); err != nil {
				return answered, err
			}
		}
	}
}

// trusted accepts a control plane that runs as root or as this process does.
func trusted(p peercred.Peer) error {
	if p.UID != 0 && int64(p.UID) != int64(os.Geteuid()) {
		return fmt.Errorf("the control plane's socket belongs to user %d, not to root", p.UID)
	}
	return nil
}

// receive applies a response and answers it.
func (s *session) receive(r *discoveryv3.DeltaDiscoveryResponse) error {
	c := s.client
	kind, ok := codec.KindOf(r.GetTypeUrl())
	if !ok {
		return fmt.Errorf("control plane sent unknown type %q", r.GetTypeUrl())
	}
	c.metrics.responses.WithLabelValues(string(kind)).Inc()
	rejections := s.take(kind, r)
	c.apply()
	var detail *status.Status
	if len(rejections) > 0 {
		c.metrics.rejected.WithLabelValues(string(kind)).Add(float64(len(rejections)))
		for _, e := range rejections {
			c.log.Warn("resource refused", "kind", kind, "key", e.Name, "err", e.Text)
		}
		var err error
		if detail, err = nack(rejections); err != nil {
			return err
		}
	}
	if err := s.request(kind, r.GetNonce(), detail); err != nil {
		return err
	}
	return s.flush()
}

// take gives the view what a response says and returns what was refused.
func (s *session) take(kind mesh.Kind, r *discoveryv3.DeltaDiscoveryResponse) []*sluicev1.Rejection {
	c := s.client
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.view
	var rejections []*sluicev1.Rejection
	var answered []string
	for _, e := range r.GetResources() {
		name := e.GetName()
		if _, pattern := nametree.Prefix(name); pattern && e.GetResource() == nil {
			answered = append(answered, name)
			continue
		}
		if !v.kinds[kind].covered(name) {
			continue // was on its way when it was unsubscribed
		}
		ref := mesh.Ref{Kind: kind, Key: name}
		var decoded mesh.Resource
		err := errors.New("the resource has no content of its type")
		if e.GetResource().GetTypeUrl() == r.GetTypeUrl() {
			decoded, err = c.decode(ref, e.GetResource().GetValue())
		}
		if err != nil {
			rejections = append(rejections, &sluicev1.Rejection{Name: name, Text: strings.ToValidUTF8(err.Error(), "\uFFFD")})
			v.refuse(ref, err.Error())
			continue
		}
		v.accept(decoded, e.GetVersion(), e.GetResource().GetValue())
		v.answer(ref)
	}
	for _, name := range r.GetRemovedResources() {
		v.remove(mesh.Ref{Kind: kind, Key: name})
	}
	for _, pattern := range answered {
		v.answer(mesh.Ref{Kind: kind, Key: pattern})
	}
	v.settle()
	return rejections
}

// nack says which resources were refused, and that all others were accepted.
func nack(rejections []*sluicev1.Rejection) (*status.Status, error) {
	var text strings.Builder
	for i, e := range rejections {
		if i > 0 {
			text.WriteString("; ")
		}
		if text.Len()+len(e.Text) > maxNackText {
			fmt.Fprintf(&text, "and %d more", len(rejections)-i)
			break
		}
		text.WriteString(e.Text)
	}
	packed, err := anypb.New(&sluicev1.Rejections{Rejections: rejections})
	if err != nil {
		return nil, err
	}
	return &status.Status{
		Code:    int32(codes.InvalidArgument),
		Message: text.String(),
		Details: []*anypb.Any{packed},
	}, nil
}

// flush sends the subscriptions that have changed.
func (s *session) flush() error {
	for _, kind := range mesh.Kinds {
		k := s.client.view.kinds[kind]
		if !s.opened[kind] && len(k.byName)+len(k.byPrefix) == 0 {
			continue
		}
		if s.opened[kind] && len(k.subscribe)+len(k.unsubscribe) == 0 {
			continue
		}
		if err := s.request(kind, "", nil); err != nil {
			return err
		}
	}
	return nil
}

// request sends one request of a kind: the answer to a response, if nonce is set,
// with all changes of subscriptions.
func (s *session) request(kind mesh.Kind, nonce string, detail *status.Status) error {
	c := s.client
	r := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: codec.TypeURL(kind), ResponseNonce: nonce, ErrorDetail: detail}
	if !s.named {
		s.named = true
		r.Node = &corev3.Node{
			Id:             c.cfg.Node,
			UserAgentName:  "sluice",
			Metadata:       &structpb.Struct{Fields: map[string]*structpb.Value{"role": structpb.NewStringValue(string(c.cfg.Role))}},
			ClientFeatures: []string{featureCollections},
		}
	}
	c.mu.Lock()
	k := c.view.kinds[kind]
	if s.opened[kind] {
		r.ResourceNamesSubscribe = slices.Sorted(maps.Keys(k.subscribe))
		r.ResourceNamesUnsubscribe = slices.Sorted(maps.Keys(k.unsubscribe))
	} else {
		s.opened[kind] = true
		for name := range k.byName {
			r.ResourceNamesSubscribe = append(r.ResourceNamesSubscribe, name)
		}
		for prefix := range k.byPrefix {
			r.ResourceNamesSubscribe = append(r.ResourceNamesSubscribe, nametree.Pattern(prefix))
		}
		if n := k.resources.Len(); n > 0 {
			r.InitialResourceVersions = make(map[string]string, n)
			for key, res := range k.resources.Below("") {
				r.InitialResourceVersions[key] = res.newest()
			}
		}
	}
	clear(k.subscribe)
	clear(k.unsubscribe)
	c.mu.Unlock()
	return s.stream.Send(r)
}
