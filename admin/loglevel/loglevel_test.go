package loglevel_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"

	"github.com/sluice-mesh/sluice/admin/loglevel"
)

// newLogger returns a logger of levels with its output, without times.
func newLogger(levels *loglevel.Levels) (*slog.Logger, *bytes.Buffer) {
	var out bytes.Buffer
	next := slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug - 10, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}})
	return slog.New(levels.Handler(next)), &out
}

func logged(t *testing.T, out *bytes.Buffer, want ...string) {
	t.Helper()
	got := out.String()
	out.Reset()
	if joined := strings.Join(append(want, ""), "\n"); got != joined {
		t.Errorf("logged:\n%swant:\n%s", got, joined)
	}
}

func TestLevels(t *testing.T) {
	levels := loglevel.New(slog.LevelInfo)
	logger, out := newLogger(levels)
	dns := logger.With(loglevel.ComponentKey, "dns")
	xds := logger.With("node", "n1").With(loglevel.ComponentKey, "xds", "client", "proxy")

	all := func() {
		logger.Debug("a")
		logger.Info("b")
		dns.Debug("c")
		dns.Info("d")
		xds.Debug("e")
		xds.Info("f")
	}
	all()
	logged(t, out, "level=INFO msg=b", "level=INFO msg=d component=dns", "level=INFO msg=f node=n1 component=xds client=proxy")

	if err := levels.Set("dns", slog.LevelDebug); err != nil {
		t.Fatal(err)
	}
	levels.SetDefault(slog.LevelError)
	all()
	logged(t, out, "level=DEBUG msg=c component=dns", "level=INFO msg=d component=dns")

	if err := levels.Reset("dns"); err != nil {
		t.Fatal(err)
	}
	all()
	logged(t, out)

	levels.SetDefault(slog.LevelDebug)
	if err := levels.Set("xds", slog.LevelWarn); err != nil {
		t.Fatal(err)
	}
	all()
	logged(t, out, "level=DEBUG msg=a", "level=INFO msg=b", "level=DEBUG msg=c component=dns", "level=INFO msg=d component=dns")

	levels.Register("later")
	got := levels.List()
	want := []loglevel.Level{{"dns", slog.LevelDebug, false}, {"later", slog.LevelDebug, false}, {"xds", slog.LevelWarn, true}}
	if len(got) != len(want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got %v, want %v", got[i], want[i])
		}
	}
}

func TestUnknownComponent(t *testing.T) {
	levels := loglevel.New(slog.LevelInfo)
	levels.Register("dns", "xds")
	for _, err := range []error{levels.Set("dsn", slog.LevelDebug), levels.Reset("dsn")} {
		if err == nil || !strings.Contains(err.Error(), "dns, xds") {
			t.Errorf("error %v, want one that names what there is", err)
		}
	}
}

// TestGroups: only a logger's own attribute names a component.
func TestGroups(t *testing.T) {
	levels := loglevel.New(slog.LevelInfo)
	logger, out := newLogger(levels)
	logger = logger.With(loglevel.ComponentKey, "dns")
	if err := levels.Set("dns", slog.LevelDebug); err != nil {
		t.Fatal(err)
	}
	logger.WithGroup("").WithGroup("peer").With(loglevel.ComponentKey, "stranger").Debug("x")
	logged(t, out, "level=DEBUG msg=x component=dns peer.component=stranger")
	if n := len(levels.List()); n != 1 {
		t.Errorf("%d components, want 1", n)
	}
	// A component within a component has its own level.
	logger.With(loglevel.ComponentKey, "cache").Debug("y")
	logged(t, out)
}

func TestParse(t *testing.T) {
	for word, want := range map[string]slog.Level{"debug": slog.LevelDebug, "INFO": slog.LevelInfo, "Warn": slog.LevelWarn, "error": slog.LevelError, "debug+2": -2} {
		if got, err := loglevel.Parse(word); err != nil || got != want {
			t.Errorf("Parse(%q) = %v, %v", word, got, err)
		}
	}
	for _, bad := range []string{"", "loud", "info+x"} {
		if _, err := loglevel.Parse(bad); err == nil {
			t.Errorf("Parse(%q) took it", bad)
		}
	}
}

func TestDisabledDoesNotAllocate(t *testing.T) {
	logger, _ := newLogger(loglevel.New(slog.LevelInfo))
	logger = logger.With(loglevel.ComponentKey, "dns")
	if n := testing.AllocsPerRun(100, func() { logger.Debug("x") }); n != 0 {
		t.Errorf("a message that is not logged allocates %v times", n)
	}
}
