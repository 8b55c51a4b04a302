package gatewayaddr

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/sluice-mesh/sluice/mesh"
)

// journal remembers on disk which sockets there are, at a cost that does not grow
// with their number. Each line is a change.
type journal struct {
	path string
	file *os.File // nil until the first change
	// lines is the number of changes in the file.
	lines int
}

// change is a line of the journal: a socket that was opened, or the address and
// port of one that was closed.
type change struct {
	Opened *Socket         `json:"opened,omitempty"`
	Closed *netip.AddrPort `json:"closed,omitempty"`
	// UDP says of Closed that it is not TCP.
	UDP bool `json:"udp,omitempty"`
}

// closed is the change that says that s was.
func closed(s *Socket) change {
	return change{Closed: &s.AddrPort, UDP: s.Protocol == mesh.ProtocolUDP}
}

// maxIdleLines is how many lines a journal may have beyond twice its sockets before
// it is written anew.
const maxIdleLines = 64

// read returns the sockets that are open. A line that cannot be read, such as the
// last one of an agent that was killed, is left out: its socket is not recognised
// and is made anew.
func (j *journal) read() (map[mesh.Frontend]Socket, error) {
	open := make(map[mesh.Frontend]Socket)
	data, err := os.ReadFile(j.path)
	if errors.Is(err, fs.ErrNotExist) {
		return open, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read sockets of gateways: %w", err)
	}
	for line := range bytes.Lines(data) {
		var c change
		switch err := json.Unmarshal(line, &c); {
		case err != nil:
		case c.Opened != nil:
			open[c.Opened.frontend()] = *c.Opened
		case c.Closed != nil:
			f := mesh.Frontend{AddrPort: *c.Closed, Protocol: mesh.ProtocolTCP}
			if c.UDP {
				f.Protocol = mesh.ProtocolUDP
			}
			delete(open, f)
		}
	}
	return open, nil
}

// write notes a change. open are all sockets that are open after it, of which it is
// asked only when the journal is written anew.
func (j *journal) write(c change, count int, open func(yield func(Socket) bool)) error {
	if j.file == nil || j.lines >= 2*count+maxIdleLines {
		return j.rewrite(open)
	}
	line, err := json.Marshal(c)
	if err == nil {
		_, err = j.file.Write(append(line, '\n'))
	}
	if err != nil {
		return fmt.Errorf("remember socket of a gateway: %w", err)
	}
	j.lines++
	return nil
}

// rewrite replaces the journal by one that says only which sockets are open.
func (j *journal) rewrite(open func(yield func(Socket) bool)) error {
	j.close()
	var b bytes.Buffer
	lines := 0
	for s := range open {
		line, err := json.Marshal(change{Opened: &s})
		if err != nil {
			return fmt.Errorf("remember sockets of gateways: %w", err)
		}
		b.Write(append(line, '\n'))
		lines++
	}
	tmp := filepath.Join(filepath.Dir(j.path), "."+filepath.Base(j.path)+".tmp")
	if err := os.WriteFile(tmp, b.Bytes(), 0o600); err != nil {
		return fmt.Errorf("remember sockets of gateways: %w", err)
	}
	file, err := os.OpenFile(tmp, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return fmt.Errorf("remember sockets of gateways: %w", err)
	}
	if err := os.Rename(tmp, j.path); err != nil {
		_ = file.Close()
		return fmt.Errorf("remember sockets of gateways: %w", err)
	}
	j.file, j.lines = file, lines
	return nil
}

func (j *journal) close() {
	if j.file != nil {
		_ = j.file.Close()
		j.file = nil
	}
}
