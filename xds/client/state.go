package client

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"path/filepath"
	"syscall"

	"github.com/sluice-mesh/sluice/mesh"
)

// The state file is a log: a header, then records of
//
//	length uint32, CRC-32C of the payload uint32, payload
//
// in little endian. A payload is an op byte and then, each after its length as a
// uvarint: kind, key, version, value. A record replaces what an earlier one said
// of the same resource. What stands behind a damaged record is not read.
const stateHeader = "sluice-xds-state-1\n"

// maxRecordBytes bounds a record, against a damaged length.
const maxRecordBytes = 256 << 20

// slackBytes is how much more than twice its size when it was last written whole
// the file may have before it is written whole again.
const slackBytes = 1 << 20

type op byte

const (
	opPut op = iota + 1
	opDelete
	opWant
	opForget
	// opReady says that all initial subscriptions had been answered.
	opReady
)

// record is one change of the state.
type record struct {
	op      op
	ref     mesh.Ref
	version string
	value   []byte
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func (r *record) append(b []byte) []byte {
	start := len(b)
	b = append(b, make([]byte, 8)...)
	b = append(b, byte(r.op))
	for _, s := range []string{string(r.ref.Kind), r.ref.Key, r.version} {
		b = binary.AppendUvarint(b, uint64(len(s)))
		b = append(b, s...)
	}
	b = binary.AppendUvarint(b, uint64(len(r.value)))
	b = append(b, r.value...)
	payload := b[start+8:]
	binary.LittleEndian.PutUint32(b[start:], uint32(len(payload)))
	binary.LittleEndian.PutUint32(b[start+4:], crc32.Checksum(payload, castagnoli))
	return b
}

// readState returns the records of a state file and the number of bytes that are
// sound; err says what stands behind them, if anything does. The records' values
// are parts of data.
func readState(data []byte) (records []record, sound int, err error) {
	rest, ok := bytes.CutPrefix(data, []byte(stateHeader))
	if !ok {
		return nil, 0, errors.New("not a state file of this version")
	}
	sound = len(stateHeader)
	for len(rest) > 0 {
		if len(rest) < 8 {
			return records, sound, fmt.Errorf("byte %d: record cut short", sound)
		}
		size, sum := binary.LittleEndian.Uint32(rest), binary.LittleEndian.Uint32(rest[4:])
		if size > maxRecordBytes || int64(size) > int64(len(rest)-8) {
			return records, sound, fmt.Errorf("byte %d: record of %d bytes is cut short", sound, size)
		}
		payload := rest[8 : 8+size]
		if crc32.Checksum(payload, castagnoli) != sum {
			return records, sound, fmt.Errorf("byte %d: wrong checksum", sound)
		}
		r, err := readRecord(payload)
		if err != nil {
			return records, sound, fmt.Errorf("byte %d: %w", sound, err)
		}
		records = append(records, r)
		rest = rest[8+size:]
		sound += 8 + int(size)
	}
	return records, sound, nil
}

func readRecord(payload []byte) (record, error) {
	if len(payload) == 0 {
		return record{}, errors.New("empty record")
	}
	r := record{op: op(payload[0])}
	if r.op < opPut || r.op > opReady {
		return record{}, fmt.Errorf("unknown op %d", r.op)
	}
	rest := payload[1:]
	var fields [4][]byte
	for i := range fields {
		n, size := binary.Uvarint(rest)
		if size <= 0 || n > uint64(len(rest)-size) {
			return record{}, errors.New("field cut short")
		}
		fields[i] = rest[size : size+int(n)]
		rest = rest[size+int(n):]
	}
	if len(rest) > 0 {
		return record{}, errors.New("bytes behind the last field")
	}
	r.ref = mesh.Ref{Kind: mesh.Kind(fields[0]), Key: string(fields[1])}
	r.version = string(fields[2])
	r.value = fields[3]
	return r, nil
}

// stateFile is the file on disk. The client's goroutine owns it. A nil *stateFile
// keeps nothing.
type stateFile struct {
	dir  string
	lock *os.File // held for as long as the process writes
	file *os.File // nil until the first write
	size int      // of file
	base int      // size when it was last written whole
}

func (f *stateFile) path() string { return filepath.Join(f.dir, "state") }

// openState makes the directory and takes its lock. When another process holds the
// lock, say the one that this one replaces, the state can be read and every write
// tries again to take it.
func openState(dir string) (*stateFile, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return &stateFile{dir: dir}, nil
}

// read returns the state's records. A missing file has none.
func (f *stateFile) read() ([]record, error) {
	data, err := os.ReadFile(f.path())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	records, _, err := readState(data)
	if err != nil {
		err = fmt.Errorf("%s: %w", f.path(), err)
	}
	return records, err
}

// write appends records. When the file has doubled since it was written whole, or
// was not written by this process yet, it is written whole instead, with the
// records that all returns, which are the state that records led to.
func (f *stateFile) write(records []record, all func() ([]record, error)) error {
	if f == nil || len(records) == 0 {
		return nil
	}
	if f.file == nil || f.size > 2*f.base+slackBytes {
		return f.rewrite(all)
	}
	var b []byte
	for i := range records {
		b = records[i].append(b)
	}
	n, err := f.file.Write(b)
	f.size += n
	if err != nil {
		// The next write begins a new file: a torn record would hide what follows.
		return errors.Join(err, f.closeFile())
	}
	return nil
}

// rewrite replaces the file by one with just the records that are needed.
func (f *stateFile) rewrite(all func() ([]record, error)) (err error) {
	if err := f.takeLock(); err != nil {
		return err
	}
	records, err := all()
	if err != nil {
		return err
	}
	b := []byte(stateHeader)
	for i := range records {
		b = records[i].append(b)
	}
	temporary := f.path() + ".new"
	file, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Close())
		}
	}()
	if _, err := file.Write(b); err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return err
	}
	if err := os.Rename(temporary, f.path()); err != nil {
		return err
	}
	if err := f.closeFile(); err != nil {
		return err
	}
	f.file, f.size, f.base = file, len(b), len(b)
	return nil
}

func (f *stateFile) takeLock() error {
	if f.lock != nil {
		return nil
	}
	lock, err := os.OpenFile(filepath.Join(f.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return errors.Join(fmt.Errorf("lock %s: %w", f.dir, err), lock.Close())
	}
	f.lock = lock
	return nil
}

func (f *stateFile) closeFile() error {
	if f.file == nil {
		return nil
	}
	file := f.file
	f.file = nil
	return file.Close()
}

// close releases the file and its lock.
func (f *stateFile) close() error {
	if f == nil {
		return nil
	}
	err := f.closeFile()
	if f.lock != nil {
		err = errors.Join(err, f.lock.Close())
		f.lock = nil
	}
	return err
}
