// Package loglevel gives each component of a process a log level that can be
// changed while it runs.
//
// A Levels holds the levels and belongs to the process; loggers are made with its
// Handler and name their component with logger.With("component", NAME). Setting a
// level takes effect at once in all goroutines. Setting fails for a word that is
// not a level and for a component that the process does not have.
package loglevel

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// ComponentKey is the attribute that names the component of a logger.
const ComponentKey = "component"

// Levels are the levels of one process. Create it with New.
type Levels struct {
	standard slog.LevelVar

	mu         sync.Mutex
	components map[string]*component // guarded by mu
}

// component is the level of one component, or of those without one.
type component struct {
	own   atomic.Bool
	level slog.LevelVar // valid if own
}

// New returns levels whose default is level.
func New(level slog.Level) *Levels {
	l := &Levels{components: map[string]*component{}}
	l.standard.Set(level)
	return l
}

// Parse returns the level of a word: debug, info, warn or error in any case,
// with an offset such as "debug+2" if need be.
func Parse(word string) (slog.Level, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(word)); err != nil {
		return 0, fmt.Errorf("log level %q: want debug, info, warn or error", word)
	}
	return level, nil
}

// Register makes a component known before it logs anything.
func (l *Levels) Register(names ...string) {
	for _, name := range names {
		l.component(name)
	}
}

// Default returns the level of components without one of their own.
func (l *Levels) Default() slog.Level { return l.standard.Level() }

// SetDefault changes the level of components without one of their own.
func (l *Levels) SetDefault(level slog.Level) { l.standard.Set(level) }

// Set gives a component a level of its own.
func (l *Levels) Set(name string, level slog.Level) error {
	c, err := l.known(name)
	if err != nil {
		return err
	}
	c.level.Set(level)
	c.own.Store(true)
	return nil
}

// Reset lets a component follow the default again.
func (l *Levels) Reset(name string) error {
	c, err := l.known(name)
	if err != nil {
		return err
	}
	c.own.Store(false)
	return nil
}

// Level is the level of one component.
type Level struct {
	Component string
	Level     slog.Level
	// Own says that it does not follow the default.
	Own bool
}

// List returns the levels of all known components, by name.
func (l *Levels) List() []Level {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]Level, 0, len(l.components))
	for _, name := range slices.Sorted(maps.Keys(l.components)) {
		c := l.components[name]
		out = append(out, Level{Component: name, Level: l.of(c), Own: c.own.Load()})
	}
	return out
}

func (l *Levels) of(c *component) slog.Level {
	if c != nil && c.own.Load() {
		return c.level.Level()
	}
	return l.standard.Level()
}

func (l *Levels) known(name string) (*component, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c, ok := l.components[name]; ok {
		return c, nil
	}
	return nil, fmt.Errorf("no component %q: this process has %s", name,
		strings.Join(slices.Sorted(maps.Keys(l.components)), ", "))
}

func (l *Levels) component(name string) *component {
	l.mu.Lock()
	defer l.mu.Unlock()
	c, ok := l.components[name]
	if !ok {
		c = &component{}
		l.components[name] = c
	}
	return c
}

// Handler returns a handler that passes to next what the levels let through. The
// level of next itself is not asked: make it with the lowest.
func (l *Levels) Handler(next slog.Handler) slog.Handler {
	return &handler{levels: l, next: next}
}

type handler struct {
	levels    *Levels
	component *component // nil: the default applies
	grouped   bool       // attributes are inside a group now, and name no component
	next      slog.Handler
}

func (h *handler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.levels.of(h.component)
}

func (h *handler) Handle(ctx context.Context, r slog.Record) error { return h.next.Handle(ctx, r) }

func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	out := *h
	out.next = h.next.WithAttrs(attrs)
	if h.grouped {
		return &out
	}
	for _, a := range attrs {
		if a.Key == ComponentKey && a.Value.Kind() == slog.KindString {
			out.component = h.levels.component(a.Value.String())
		}
	}
	return &out
}

func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	out := *h
	out.next = h.next.WithGroup(name)
	out.grouped = true
	return &out
}
