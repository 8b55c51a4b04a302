package http2

import (
	"golang.org/x/net/http2/hpack"

	"github.com/sluice-mesh/sluice/l7proxy/message"
)

// EventKind says what Conn.Next found.
type EventKind uint8

// The events.
const (
	NeedMore EventKind = iota // give more bytes
	Headers                   // Conn.Head is valid; a new stream (server), a response (client; status 1xx: more follow)
	Data                      // Event.Data is a piece of the body, may be empty when Event.End
	Trailers                  // Conn.Trailers is valid; Event.End is set
	Reset                     // the stream is gone: Event.Code; by the peer, an error in it, or a GOAWAY that left it out
	GoAway                    // the peer opens or accepts no more streams: Event.Code
	Writable                  // WriteData on this stream, which took less than it was given, may take more
	Settings                  // the peer's settings were applied (CanOpen may have changed)
	Ping                      // the answer to Conn.Ping arrived: Event.Data
	Refused                   // server: a request that became no stream: Event.Code, Event.Text; Conn.Head is what was readable of it
)

var eventNames = [...]string{"NeedMore", "Headers", "Data", "Trailers", "Reset", "GoAway", "Writable", "Settings", "Ping", "Refused"}

// String returns the constant's name.
func (k EventKind) String() string { return eventNames[k] }

// Event is one step of a connection or of one of its streams.
type Event struct {
	Kind   EventKind
	Stream uint32
	Data   []byte  // Data: body bytes, a slice of the input
	End    bool    // the peer's half of the stream is finished
	Code   ErrCode // Reset, GoAway, Refused (EnhanceYourCalm: the head was too large, and 431 was answered)
	Text   string  // Reset by a mistake of the peer, Refused: which, constant, fit for a log
}

// Config bounds a connection. A zero field means its default.
type Config struct {
	MaxConcurrentStreams int   // server: streams that a peer may have open; client: bound of our own
	InitialWindow        int32 // receive window of a stream
	ConnWindow           int32 // receive window of the connection, at least InitialWindow
	MaxFrameSize         int   // largest frame that the peer may send, 16384..16777215
	MaxHeaderListBytes   int   // uncompressed head, RFC 9113 §6.5.2; a client's larger head is answered with 431
	MaxFields            int   // fields of a head, and apart from it of trailers
	MaxOutBytes          int   // WriteData takes nothing while so many bytes wait in Out
	ExtendedConnect      bool  // server: accept and advertise RFC 8441

	// MaxResets is how many more streams of a client may end by its reset or by its mistakes than
	// come to an end in order. Tick halves the count.
	MaxResets int
	// MaxIdleFrames is how many frames that bring nothing (PING, SETTINGS, PRIORITY, WINDOW_UPDATE,
	// unknown ones) may follow each other without a head or body byte either way.
	MaxIdleFrames int
}

// DefaultConfig returns what a zero Config stands for. The windows let one stream fill 200 Mbit/s
// at 10 ms; the connection's is larger than a stream's, so that one slow stream does not stop the others.
func DefaultConfig() Config {
	return Config{
		MaxConcurrentStreams: 256, InitialWindow: 256 << 10, ConnWindow: 1 << 20, MaxFrameSize: 16 << 10,
		MaxHeaderListBytes: 64 << 10, MaxFields: 256, MaxOutBytes: 128 << 10,
		MaxResets: 1000, MaxIdleFrames: 10000,
	}
}

func (c Config) withDefaults() Config {
	d := DefaultConfig()
	set := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	set(&c.MaxConcurrentStreams, d.MaxConcurrentStreams)
	set(&c.MaxFrameSize, d.MaxFrameSize)
	c.MaxFrameSize = min(max(c.MaxFrameSize, minMaxFrame), maxMaxFrame)
	set(&c.MaxHeaderListBytes, d.MaxHeaderListBytes)
	set(&c.MaxFields, d.MaxFields)
	set(&c.MaxOutBytes, d.MaxOutBytes)
	set(&c.MaxResets, d.MaxResets)
	set(&c.MaxIdleFrames, d.MaxIdleFrames)
	if c.InitialWindow <= 0 {
		c.InitialWindow = d.InitialWindow
	}
	if c.ConnWindow <= 0 {
		c.ConnWindow = d.ConnWindow
	}
	c.ConnWindow = max(c.ConnWindow, c.InitialWindow, defaultWindow)
	return c
}

const (
	preface       = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" // RFC 9113 §3.4
	defaultWindow = 65535                              // RFC 9113 §6.9.2
	maxWindow     = 1<<31 - 1
	maxStreamID   = 1<<31 - 1
	minMaxFrame   = 1 << 14
	maxMaxFrame   = 1<<24 - 1
	headerSize    = 9
	// maxSettings is how many parameters one SETTINGS frame may have; six are defined.
	maxSettings = 64
	// maxContinuations is how many frames may carry one header block.
	maxContinuations = 32
	// maxEmptyData is how many empty DATA frames may follow each other.
	maxEmptyData = 100
	// maxAcks is how many answers to PING and SETTINGS may wait for a peer that does not read.
	maxAcks = 1000
	// maxInterim is how many 1xx responses may come before the final one.
	maxInterim = 16
	// maxRemembered is how many streams that we reset are remembered, because frames of them may
	// be on the way (RFC 9113 §5.1); several times the streams that a client has at once.
	maxRemembered = 1024
	// unconfirmedStreams is what a client may assume before the server's SETTINGS (RFC 9113 §6.5.2
	// recommends that servers allow at least so many).
	unconfirmedStreams = 100
)

type frameType uint8

const (
	frameData frameType = iota
	frameHeaders
	framePriority
	frameRSTStream
	frameSettings
	framePushPromise
	framePing
	frameGoAway
	frameWindowUpdate
	frameContinuation
)

const (
	flagAck        = 0x1
	flagEndStream  = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

const (
	settingHeaderTableSize   = 0x1
	settingEnablePush        = 0x2
	settingMaxConcurrent     = 0x3
	settingInitialWindow     = 0x4
	settingMaxFrameSize      = 0x5
	settingMaxHeaderListSize = 0x6
	settingEnableConnect     = 0x8 // RFC 8441 §3
)

// stream is one that is open or half closed.
type stream struct {
	id         uint32
	sendWindow int64 // bytes that the peer lets us send
	recvWindow int64 // bytes that the peer may still send
	held       int64 // body bytes whose frame came and that the application has not consumed
	credit     int64 // consumed, not yet announced to the peer
	toReceive  int64 // what is missing to the peer's content-length, -1 when there is none
	toSend     int64 // what is missing to ours
	interims   int

	peerEnded, weEnded bool
	headSeen           bool // client: the final response head came
	headSent           bool // server: the final response head went
	isHead, isConnect  bool // method of the request
	waiting            bool // WriteData was cut short
	queued             bool // in Conn.waiting
}

type phase uint8

const (
	inPreface phase = iota // server: the client's magic
	inFrame                // at a frame header
	inData                 // in the body of a DATA frame
	inSkip                 // in bytes that nobody wants
)

// Conn is one end of one connection.
type Conn struct {
	// Set at construction.
	cfg    Config
	server bool

	// Reading.
	phase       phase
	skip        int     // bytes of inSkip
	dataLeft    int     // bytes of inData
	dataPad     int     // padding after them
	dataEnd     bool    // END_STREAM
	dataStream  *stream // nil when it went away meanwhile
	sawSettings bool
	acked       bool // the peer has applied our settings
	block       block
	decoder     *hpack.Decoder
	arena       []byte          // the current block's names and values
	fields      []message.Field // the current block's fields, pseudo-header fields too
	listSize    int
	tooLarge    bool
	head        message.Head
	trailers    []message.Field
	cookie      []byte
	pingData    [8]byte

	// Streams.
	streams   map[uint32]*stream
	free      []*stream
	lastPeer  uint32 // server: highest stream that the client opened
	nextOwn   uint32 // client: the next stream
	forgotten []uint32
	forgetAt  int

	// Flow control.
	recvWindow, credit int64
	sendWindow         int64
	waiting            []uint32 // streams whose WriteData was cut short, in order
	wake               int      // how many of them to look at

	// The peer's settings.
	peerMaxFrame    int
	peerWindow      int64
	peerMaxStreams  int
	peerMaxHeadSize int64
	peerConnect     bool
	tableUpdate     bool // the encoder has said that it uses no table

	events []Event // due before more input is read

	// Writing.
	out  []byte
	sent int // bytes at the front of out that went

	// Ending.
	err          error
	closing      bool // GoAway was called
	draining     bool // Shutdown was called
	final        bool // our last GOAWAY, with finalID, went
	finalID      uint32
	peerGoAway   bool
	shutdownPing bool

	// What the peer did for nothing.
	resets, idle, empty, acks int
}

// NewServer reads what a client sends, its preface included. Out holds the server's preface.
func NewServer(cfg Config) *Conn {
	c := newConn(cfg, true)
	c.phase = inPreface
	c.start()
	return c
}

// NewClient starts with the client's preface in Out; requests may follow at once.
func NewClient(cfg Config) *Conn {
	c := newConn(cfg, false)
	c.phase = inFrame
	c.nextOwn = 1
	c.out = append(c.out, preface...)
	c.start()
	return c
}

func newConn(cfg Config, server bool) *Conn {
	c := &Conn{
		cfg: cfg.withDefaults(), server: server, streams: map[uint32]*stream{},
		sendWindow: defaultWindow, peerMaxFrame: minMaxFrame, peerWindow: defaultWindow,
		peerMaxStreams: unconfirmedStreams, peerMaxHeadSize: 1 << 62,
	}
	c.recvWindow = int64(c.cfg.ConnWindow)
	c.decoder = hpack.NewDecoder(4096, c.emit)
	c.decoder.SetMaxStringLength(c.cfg.MaxHeaderListBytes)
	c.head.Reset()
	return c
}

// start writes our settings.
func (c *Conn) start() {
	type setting struct {
		id    uint16
		value uint32
	}
	settings := []setting{
		{settingInitialWindow, uint32(c.cfg.InitialWindow)},
		{settingMaxFrameSize, uint32(c.cfg.MaxFrameSize)},
		{settingMaxHeaderListSize, uint32(c.cfg.MaxHeaderListBytes)},
	}
	if c.server {
		settings = append(settings, setting{settingMaxConcurrent, uint32(c.cfg.MaxConcurrentStreams)})
		if c.cfg.ExtendedConnect {
			settings = append(settings, setting{settingEnableConnect, 1})
		}
	} else {
		settings = append(settings, setting{settingEnablePush, 0})
	}
	c.frame(6*len(settings), frameSettings, 0, 0)
	for _, s := range settings {
		c.out = append(c.out, byte(s.id>>8), byte(s.id))
		c.out = be32(c.out, s.value)
	}
	if n := c.cfg.ConnWindow - defaultWindow; n > 0 {
		c.windowUpdate(0, int64(n))
	}
}

// Head is the head of the Headers event that Next just returned, valid until Next is called again.
func (c *Conn) Head() *message.Head { return &c.head }

// Trailers are those of the Trailers event that Next just returned, valid until Next is called again.
func (c *Conn) Trailers() []message.Field { return c.trailers }

// OpenStreams is how many streams are open or half closed.
func (c *Conn) OpenStreams() int { return len(c.streams) }

// CanOpen is how many more streams OpenStream would accept now (client).
func (c *Conn) CanOpen() int {
	if c.server || c.err != nil || c.closing || c.draining || c.peerGoAway {
		return 0
	}
	n := min(c.peerMaxStreams, c.cfg.MaxConcurrentStreams) - len(c.streams)
	return max(0, min(n, int(maxStreamID-int64(c.nextOwn)+2)/2))
}

// ExtendedConnect reports whether the peer accepts RFC 8441 (client, after Settings).
func (c *Conn) ExtendedConnect() bool { return c.peerConnect }

// Done reports that nothing is left to do: after an error, GoAway, or a Shutdown (or the GOAWAY of a
// server) whose last stream has ended. Close when Out is empty.
func (c *Conn) Done() bool {
	return c.err != nil || c.closing || len(c.streams) == 0 && (c.peerGoAway && !c.server || c.draining && c.final)
}

// Tick lets the counters of abuse forget, and gives back memory that a burst needed; call it about once a
// second while the connection is in use, and once more afterwards.
func (c *Conn) Tick() {
	c.shrink()
	c.resets /= 2
	c.idle /= 2
	c.empty /= 2
}

// open makes the state of a stream.
func (c *Conn) open(id uint32) *stream {
	var s *stream
	if n := len(c.free); n > 0 {
		s, c.free = c.free[n-1], c.free[:n-1]
	} else {
		s = new(stream)
	}
	*s = stream{
		id: id, sendWindow: c.peerWindow, recvWindow: int64(c.cfg.InitialWindow), toReceive: -1, toSend: -1,
	}
	// Until the peer has read our settings, it may use the default.
	if !c.acked {
		s.recvWindow = max(s.recvWindow, defaultWindow)
	}
	c.streams[id] = s
	return s
}

// remove forgets a stream. What the application still holds of it is announced to the peer as if it
// were consumed: the stream's window, not the connection's, has bounded it.
func (c *Conn) remove(s *stream) {
	if c.dataStream == s {
		c.dataStream = nil
	}
	delete(c.streams, s.id)
	c.creditConn(s.held)
	if len(c.free) < 64 {
		c.free = append(c.free, s)
	}
}

// finish removes a stream whose both halves have ended.
func (c *Conn) finish(s *stream) {
	if s.peerEnded && s.weEnded {
		c.resets = max(c.resets-1, 0)
		c.remove(s)
	}
}

// remember notes a stream that we ended before the peer did.
func (c *Conn) remember(id uint32) {
	if !c.server {
		return
	}
	if len(c.forgotten) < maxRemembered {
		c.forgotten = append(c.forgotten, id)
		return
	}
	c.forgotten[c.forgetAt] = id
	c.forgetAt = (c.forgetAt + 1) % maxRemembered
}

// late reports whether frames of a stream that is gone are to be expected and ignored.
func (c *Conn) late(id uint32) bool {
	if !c.server {
		// Clients give up on streams at any rate; all other streams of the connection would pay
		// for a strict answer.
		return !c.idleStream(id)
	}
	if c.final && id > c.finalID {
		return true
	}
	for _, f := range c.forgotten {
		if f == id {
			return true
		}
	}
	return false
}

// idleStream reports whether a stream was never opened.
func (c *Conn) idleStream(id uint32) bool {
	if id&1 == 0 {
		return true // nobody pushes here
	}
	if c.server {
		return id > c.lastPeer
	}
	return id >= c.nextOwn
}

// Consumed says that the application has taken n body bytes of a stream; the peer may then send so
// many more. Without it a peer stops after InitialWindow bytes. A stream that has ended needs none.
func (c *Conn) Consumed(id uint32, n int) {
	s := c.streams[id]
	if s == nil {
		return
	}
	k := min(int64(n), s.held)
	s.held -= k
	c.creditStream(s, k)
	c.creditConn(k)
}

func (c *Conn) creditStream(s *stream, n int64) {
	s.credit += n
	// In halves of the window, so that the peer never waits for an announcement while it could send.
	if !s.peerEnded && s.credit >= int64(c.cfg.InitialWindow+1)/2 {
		s.recvWindow += s.credit
		c.windowUpdate(s.id, s.credit)
		s.credit = 0
	}
}

func (c *Conn) creditConn(n int64) {
	c.credit += n
	if c.credit >= int64(c.cfg.ConnWindow+1)/2 && c.err == nil {
		c.recvWindow += c.credit
		c.windowUpdate(0, c.credit)
		c.credit = 0
	}
}
