package l7proxy

import (
	"crypto/tls"
	"errors"
	"reflect"

	"github.com/sluice-mesh/sluice/l7proxy/loop"
	"github.com/sluice-mesh/sluice/l7proxy/tlsengine"
	"github.com/sluice-mesh/sluice/l7proxy/upstream"
	"github.com/sluice-mesh/sluice/mesh"
)

// tlsError says that the handshake with an endpoint failed, or that its certificate
// is not trusted.
type tlsError struct{ err error }

func (e *tlsError) Error() string { return e.err.Error() }
func (e *tlsError) Unwrap() error { return e.err }

// origination has the settings with which a worker connects to the endpoints of a
// cluster over TLS. They live as long as what the cluster says stays the same.
type origination struct {
	settings *mesh.UpstreamTLS
	configs  map[originationKey]*tls.Config
}

type originationKey struct {
	certificate string // of the Gateway, empty: none
	protocol    upstream.Protocol
}

// raw is the protocol of tunnels, which offer nothing by ALPN.
const raw upstream.Protocol = 0

// alpnOf is what a pool of a protocol offers: nothing else is spoken on it.
func alpnOf(p upstream.Protocol) []string {
	switch p {
	case upstream.HTTP1:
		return []string{"http/1.1"}
	case upstream.HTTP2:
		return []string{"h2"}
	}
	return nil
}

// originate returns the settings for connections to a cluster on behalf of a listener:
// nil, without an error, if they are in plain text.
func (w *worker) originate(c *upstream.Cluster, protocol upstream.Protocol, l *mesh.Listener) (*tls.Config, error) {
	config, _ := c.Config()
	if config == nil || config.TLS == nil {
		if w.originations[c.Name] != nil {
			w.forgetTLS(c.Name)
		}
		return nil, nil
	}
	o := w.originations[c.Name]
	switch {
	case o != nil && o.settings == config.TLS:
	case o != nil && reflect.DeepEqual(o.settings, config.TLS):
		o.settings = config.TLS
	default:
		w.forgetTLS(c.Name)
		o = &origination{settings: config.TLS, configs: map[originationKey]*tls.Config{}}
		w.originations[c.Name] = o
	}
	key := originationKey{protocol: protocol}
	if l != nil {
		key.certificate = l.ClientCertificate
	}
	cfg := o.configs[key]
	if cfg == nil {
		var err error
		certificates := w.proxy.cfg.Certificates
		cfg, err = tlsengine.ClientConfig(config.TLS, alpnOf(protocol), func() *tls.Certificate {
			if certificates == nil || key.certificate == "" {
				return nil
			}
			return certificates.Certificate(key.certificate)
		})
		if err != nil {
			return nil, &tlsError{err}
		}
		o.configs[key] = cfg
	}
	return cfg, nil
}

// forgetTLS closes the unused connections to a cluster with its present settings.
func (w *worker) forgetTLS(cluster string) {
	if o := w.originations[cluster]; o != nil {
		delete(w.originations, cluster)
		for _, cfg := range o.configs {
			w.set.DropTLS(cfg)
		}
	}
}

// securing is a connection to an endpoint whose handshake is under way.
type securing struct {
	w    *worker
	c    *loop.Conn
	tls  *tlsengine.Conn
	done func(*securing, error)
	over bool
}

// secure begins a handshake on c, which is securing's until done is called, once and
// not before secure has returned: without an error the connection and its engine
// become the caller's.
func (w *worker) secure(c *loop.Conn, cfg *tls.Config, done func(*securing, error)) *securing {
	s := &securing{w: w, c: c, done: done}
	w.securing[s] = struct{}{}
	c.SetHandler(s)
	l := w.loop
	s.tls = tlsengine.Client(cfg, func() { l.Post(s.step) })
	return s
}

// Ready is called by the loop.
func (s *securing) Ready(*loop.Conn) { s.step() }

func (s *securing) step() {
	if s.over {
		return
	}
	done, err := s.tls.HandshakeDone()
	for !done && s.tls.Buffered() < maxHandshakeBytes {
		n, rerr := s.c.Read(s.w.cipher[:16<<10])
		if rerr == loop.ErrAgain {
			break
		}
		if rerr != nil {
			s.tls.FeedEOF()
			s.end(errors.New("the endpoint closed the connection during the TLS handshake"))
			return
		}
		s.tls.Feed(s.w.cipher[:n])
	}
	if !done {
		done, err = s.tls.HandshakeDone()
	}
	for {
		p := s.tls.Out()
		if len(p) == 0 {
			break
		}
		n, serr := s.c.Send(p)
		if serr != nil && serr != loop.ErrAgain && err == nil {
			err = serr
		}
		if n == 0 || serr != nil {
			break
		}
		s.tls.Sent(n)
	}
	if done || err != nil {
		s.end(err)
	}
}

func (s *securing) end(err error) {
	s.over = true
	delete(s.w.securing, s)
	if err != nil {
		s.tls.Close()
		s.c.Close()
		s.done(s, &tlsError{err})
		return
	}
	s.done(s, nil)
}

// cancel ends a handshake without a call of done.
func (s *securing) cancel() {
	if !s.over {
		s.over = true
		delete(s.w.securing, s)
		s.tls.Close()
		s.c.Close()
	}
}

// own takes over the engine of a handshake that is done, nil for plain text.
func (x *wire) own(s *securing) {
	if s != nil {
		x.tls = s.tls
		// The engine may hold bytes that came with the end of the handshake.
		x.c.Again()
	}
}

// quiet reports whether an unused connection has nothing to say. Over TLS what is not
// data, such as session tickets, is taken in.
func (x *wire) quiet() bool {
	if x.tls == nil {
		return !x.c.Readable()
	}
	if !x.readable() {
		return true
	}
	n, err := x.readInto(x.w.loop.Scratch[:1])
	return n == 0 && err == loop.ErrAgain
}
