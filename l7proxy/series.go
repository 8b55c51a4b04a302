package l7proxy

import (
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/sluice-mesh/sluice/l7proxy/route"
	"github.com/sluice-mesh/sluice/mesh"
	"github.com/sluice-mesh/sluice/observe/flow"
)

// maxRequestSeries bounds the series of sluice_proxy_requests_total that name a route
// or a workload. What comes beyond counts under otherName, and in
// sluice_proxy_series_overflow_total.
const maxRequestSeries = 10_000

// maxDurationSeries bounds the histograms of sluice_proxy_request_duration_seconds
// that name a route, in the same way.
const maxDurationSeries = 1_000

// otherName is the value of the labels of what is beyond those bounds, or gone.
const otherName = "other"

// seriesTable owns the series of requests: one set for each journey, route, source and
// destination. Sets go with their route and with their workloads.
type seriesTable struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
	overflow prometheus.Counter
	// alive reports whether a workload is one of the mesh or of this node.
	alive func(mesh.Name) bool

	max, maxDurations int

	mu         sync.Mutex
	sets       map[seriesKey]*seriesSet // guarded by mu, as is the rest
	byWorkload map[mesh.Name]map[*seriesSet]struct{}
	routes     map[string]*routeSeries
	hosts      map[string][]string // the routes of each virtual host
	count      int                 // series of requests that name something
	durations  int
}

// routeSeries is what a route has.
type routeSeries struct {
	name  string
	dead  atomic.Bool
	hosts int // virtual hosts that name it; guarded by the table
	sets  map[*seriesSet]struct{}
	// durations are the histograms that were resolved; guarded by the table.
	durations [journeys]prometheus.Observer
}

type seriesKey struct {
	journey      SocketType
	route        string
	source, dest mesh.Name
}

// seriesSet is the counters of one key. A dead one counts for nobody any more.
type seriesSet struct {
	seriesKey
	labels  seriesLabels
	dead    atomic.Bool
	classes [len(classes)]atomic.Pointer[prometheus.Counter] // without a reason

	// made are the class and reason of each series; guarded by the table.
	made  map[[2]string]prometheus.Counter
	named bool
}

type seriesLabels struct{ journey, route, source, dest string }

func newSeriesTable(requests *prometheus.CounterVec, duration *prometheus.HistogramVec, overflow prometheus.Counter) *seriesTable {
	return &seriesTable{
		requests: requests, duration: duration, overflow: overflow, max: maxRequestSeries, maxDurations: maxDurationSeries,
		alive: func(mesh.Name) bool { return true },
		sets:  map[seriesKey]*seriesSet{}, byWorkload: map[mesh.Name]map[*seriesSet]struct{}{},
		routes: map[string]*routeSeries{}, hosts: map[string][]string{},
	}
}

// route returns what a route has, for a rule of it that is about to be published.
func (t *seriesTable) route(name string) *routeSeries {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.routeLocked(name)
}

func (t *seriesTable) routeLocked(name string) *routeSeries {
	r := t.routes[name]
	if r == nil {
		r = &routeSeries{name: name, sets: map[*seriesSet]struct{}{}}
		t.routes[name] = r
	}
	return r
}

// apply follows a delta of the store: routes that no virtual host names any more and
// workloads that are gone lose their series. It costs O(the rules of the delta).
func (t *seriesTable) apply(d mesh.Delta) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var left []string
	for _, r := range d.Upserts {
		v, ok := r.(*mesh.VirtualHost)
		if !ok {
			continue
		}
		names := make([]string, 0, 1)
		seen := map[string]bool{}
		for i := range v.Rules {
			if name := routeName(&v.Rules[i]); !seen[name] {
				seen[name] = true
				names = append(names, name)
				t.routeLocked(name).hosts++
			}
		}
		left = append(left, t.hosts[v.Key()]...)
		t.hosts[v.Key()] = names
	}
	for _, ref := range d.Removes {
		if ref.Kind == mesh.KindVirtualHost {
			left = append(left, t.hosts[ref.Key]...)
			delete(t.hosts, ref.Key)
		}
	}
	for _, name := range left {
		if r := t.routes[name]; r != nil {
			if r.hosts--; r.hosts == 0 {
				t.dropRoute(r)
			}
		}
	}
	for _, ref := range d.Removes {
		if ref.Kind == mesh.KindWorkload {
			if name, err := mesh.ParseName(ref.Key); err == nil {
				t.dropWorkload(name)
			}
		}
	}
}

func (t *seriesTable) dropRoute(r *routeSeries) {
	r.dead.Store(true)
	delete(t.routes, r.name)
	for s := range r.sets {
		t.dropSet(s)
	}
	for j, o := range r.durations {
		if o != nil {
			t.duration.DeleteLabelValues(SocketType(j).String(), r.name)
			t.durations--
		}
	}
}

// workloadGone is told of a workload whose sockets are gone.
func (t *seriesTable) workloadGone(name mesh.Name) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dropWorkload(name)
}

func (t *seriesTable) dropWorkload(name mesh.Name) {
	if len(t.byWorkload[name]) == 0 || t.alive(name) {
		return
	}
	for s := range t.byWorkload[name] {
		t.dropSet(s)
		t.fold(s, name)
	}
}

// fold adds what a set counted to the set without a workload that is gone, so that the
// sums by route go on growing and short-lived workloads are part of them. What a loop
// counts at this very moment may be lost. t.mu is held.
func (t *seriesTable) fold(s *seriesSet, gone mesh.Name) {
	r := t.routes[s.seriesKey.route]
	if r == nil {
		return // the route goes as well
	}
	k := s.seriesKey
	if k.source == gone {
		k.source = mesh.Name{}
	}
	if k.dest == gone {
		k.dest = mesh.Name{}
	}
	into, _ := t.setLocked(r, k)
	for of, c := range s.made {
		var m dto.Metric
		if err := c.Write(&m); err != nil || m.GetCounter().GetValue() == 0 {
			continue
		}
		counter := t.counterLocked(into, of[0], of[1])
		if counter == nil {
			counter = t.requests.WithLabelValues(s.labels.journey, otherName, otherName, otherName, of[0], of[1])
		}
		counter.Add(m.GetCounter().GetValue())
	}
}

func (t *seriesTable) dropSet(s *seriesSet) {
	s.dead.Store(true)
	for of := range s.made {
		t.requests.DeleteLabelValues(s.labels.journey, s.labels.route, s.labels.source, s.labels.dest, of[0], of[1])
		t.count--
	}
	delete(t.sets, s.seriesKey)
	if r := t.routes[s.seriesKey.route]; r != nil {
		delete(r.sets, s)
	}
	for _, name := range [...]mesh.Name{s.source, s.seriesKey.dest} {
		if of := t.byWorkload[name]; of != nil {
			if delete(of, s); len(of) == 0 {
				delete(t.byWorkload, name)
			}
		}
	}
}

// set returns the series of a key. lasting says that it may be kept; it may not if
// something in the key is gone, or not known yet.
func (t *seriesTable) set(r *routeSeries, k seriesKey) (s *seriesSet, lasting bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.setLocked(r, k)
}

func (t *seriesTable) setLocked(r *routeSeries, k seriesKey) (s *seriesSet, lasting bool) {
	lasting = true
	if r.dead.Load() {
		k.route, lasting = otherName, false
	}
	if !k.source.IsZero() && !t.alive(k.source) {
		k.source, lasting = mesh.Name{}, false
	}
	if !k.dest.IsZero() && !t.alive(k.dest) {
		k.dest, lasting = mesh.Name{}, false
	}
	if s := t.sets[k]; s != nil {
		return s, lasting
	}
	s = &seriesSet{
		seriesKey: k, made: map[[2]string]prometheus.Counter{},
		labels: seriesLabels{journey: k.journey.String(), route: k.route, source: text(k.source), dest: text(k.dest)},
		named:  k.route != "" || !k.source.IsZero() || !k.dest.IsZero(),
	}
	t.sets[k] = s
	if of := t.routes[k.route]; of != nil {
		of.sets[s] = struct{}{}
	}
	for _, name := range [...]mesh.Name{k.source, k.dest} {
		if name.IsZero() {
			continue
		}
		if t.byWorkload[name] == nil {
			t.byWorkload[name] = map[*seriesSet]struct{}{}
		}
		t.byWorkload[name][s] = struct{}{}
	}
	return s, lasting
}

func text(n mesh.Name) string {
	if n.IsZero() {
		return ""
	}
	return n.String()
}

// counter returns one series of a set, nil if there are too many of them.
func (t *seriesTable) counter(s *seriesSet, class, reason string) prometheus.Counter {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.counterLocked(s, class, reason)
}

func (t *seriesTable) counterLocked(s *seriesSet, class, reason string) prometheus.Counter {
	of := [2]string{class, reason}
	if c := s.made[of]; c != nil {
		return c
	}
	l := &s.labels
	if s.dead.Load() || s.named && t.count >= t.max {
		return nil
	}
	c := t.requests.WithLabelValues(l.journey, l.route, l.source, l.dest, class, reason)
	s.made[of] = c
	if s.named {
		t.count++
	}
	return c
}

// inc counts a request.
func (t *seriesTable) inc(s *seriesSet, class int, reason flow.Reason) {
	if reason == flow.ReasonNone {
		if c := s.classes[class].Load(); c != nil {
			(*c).Inc()
			return
		}
	}
	word := ""
	if reason != flow.ReasonNone {
		word = reason.String()
	}
	c := t.counter(s, classes[class], word)
	if c == nil {
		t.overflow.Inc()
		t.requests.WithLabelValues(s.labels.journey, otherName, otherName, otherName, classes[class], word).Inc()
		return
	}
	if reason == flow.ReasonNone {
		s.classes[class].Store(&c)
	}
	c.Inc()
}

// observer returns the histogram of a route.
func (t *seriesTable) observer(r *routeSeries, journey SocketType) prometheus.Observer {
	t.mu.Lock()
	defer t.mu.Unlock()
	if o := r.durations[journey]; o != nil {
		return o
	}
	if r.name != "" && (r.dead.Load() || t.durations >= t.maxDurations) {
		return t.duration.WithLabelValues(journey.String(), otherName)
	}
	o := t.duration.WithLabelValues(journey.String(), r.name)
	r.durations[journey] = o
	if r.name != "" {
		t.durations++
	}
	return o
}

// routeName is the value of the label route.
func routeName(r *mesh.Rule) string { return r.RouteKind + "/" + r.Route.String() }

// ruleMetrics are the handles of one rule, resolved when first used.
type ruleMetrics struct {
	*routeSeries
	duration [journeys]atomic.Pointer[prometheus.Observer]
	// workers are the sets that each worker has used; each touches its own only.
	workers []workerSets
}

// workerSets are sets by who asked whom.
type workerSets struct {
	sets  map[seriesKey]*seriesSet
	sweep int // the dead are looked for at this size
}

func (m *metrics) newRuleMetrics(route string) *ruleMetrics {
	return &ruleMetrics{routeSeries: m.series.route(route), workers: make([]workerSets, m.workers)}
}

// prepareRule is called by route.Tables before it publishes a rule.
func (m *metrics) prepareRule(r *route.Rule) {
	r.Metrics = m.newRuleMetrics(routeName(r.Rule))
}

// lastSeries is the set that a connection used last, with what it stands for.
type lastSeries struct {
	rule *ruleMetrics
	dest mesh.Name
	set  *seriesSet
}

// countRequest counts an exchange that ended. It allocates nothing once the series is
// known.
func (w *worker) countRequest(d *downConn, rm *ruleMetrics, dest mesh.Name, status int, reason flow.Reason, seconds float64) {
	t := w.metrics.series
	if last := &d.series; last.rule == rm && last.dest == dest && !last.set.dead.Load() {
		t.inc(last.set, class(status), reason)
	} else {
		t.inc(w.seriesOf(d, rm, dest), class(status), reason)
	}
	o := rm.duration[d.journey].Load()
	if o == nil {
		resolved := t.observer(rm.routeSeries, d.journey)
		o = &resolved
		rm.duration[d.journey].Store(o)
	}
	(*o).Observe(seconds)
}

func (w *worker) seriesOf(d *downConn, rm *ruleMetrics, dest mesh.Name) *seriesSet {
	k := seriesKey{journey: d.journey, route: rm.name, source: d.source, dest: dest}
	own := &rm.workers[w.id]
	s := own.sets[k]
	if s == nil || s.dead.Load() {
		var lasting bool
		if s, lasting = w.metrics.series.set(rm.routeSeries, k); !lasting {
			return s
		}
		if own.sets == nil {
			own.sets = map[seriesKey]*seriesSet{}
		}
		own.sets[k] = s
		if len(own.sets) > own.sweep {
			for k, s := range own.sets {
				if s.dead.Load() {
					delete(own.sets, k)
				}
			}
			own.sweep = 2*len(own.sets) + 16
		}
	}
	d.series = lastSeries{rule: rm, dest: dest, set: s}
	return s
}
