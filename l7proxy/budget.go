package l7proxy

import "sync/atomic"

// budget is what one workload, or one Gateway's port, may use of the node proxy.
// All loops share it; steady traffic touches it once per connection only.
type budget struct {
	maxConnections int64
	maxBytes       int64
	connections    atomic.Int64
	handshakes     handshakes
	bytes          atomic.Int64
}

// open books a connection, or refuses.
func (b *budget) open() bool {
	if b.connections.Add(1) > b.maxConnections {
		b.connections.Add(-1)
		return false
	}
	return true
}

func (b *budget) close() { b.connections.Add(-1) }

// Hold books n buffered bytes, or refuses.
func (b *budget) Hold(n int) bool {
	if b.bytes.Add(int64(n)) > b.maxBytes {
		b.bytes.Add(-int64(n))
		return false
	}
	return true
}

// Free returns what Hold booked.
func (b *budget) Free(n int) { b.bytes.Add(-int64(n)) }
