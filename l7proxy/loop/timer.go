package loop

// TimerHandler is told when a timer is due.
type TimerHandler interface {
	OnTimer(t *Timer)
}

// Timer is a deadline of a loop. The zero value with a Handler is ready; it
// belongs to the loop's goroutine. Setting a timer later than before, and
// stopping it, cost a store: its place in the heap is corrected when it comes up.
type Timer struct {
	Handler TimerHandler
	when    int64 // the deadline wanted; 0: stopped
	at      int64 // the key in the heap
	index   int   // position in the heap plus one; 0: not in it
}

// Active reports whether t is set.
func (t *Timer) Active() bool { return t.when != 0 }

// SetTimer has t's handler called once Now has reached when.
func (l *Loop) SetTimer(t *Timer, when int64) {
	when = max(when, 1)
	t.when = when
	if t.index == 0 {
		t.at = when
		l.timers.push(t)
		return
	}
	if when < t.at {
		t.at = when
		l.timers.up(t.index - 1)
	}
}

// StopTimer has t's handler not called.
func (l *Loop) StopTimer(t *Timer) { t.when = 0 }

// DropTimer stops t and takes it out of the heap, for a timer whose memory is
// about to be left.
func (l *Loop) DropTimer(t *Timer) {
	t.when = 0
	if t.index != 0 {
		l.timers.remove(t.index - 1)
	}
}

func (l *Loop) runTimers() {
	for len(l.timers) > 0 {
		t := l.timers[0]
		if t.at > l.now {
			return
		}
		switch {
		case t.when == 0:
			l.timers.remove(0)
		case t.when > l.now:
			t.at = t.when
			l.timers.down(0)
		default:
			l.timers.remove(0)
			t.when = 0
			l.Stats.Timers++
			t.Handler.OnTimer(t)
		}
	}
}

// timerHeap is a heap of four children by Timer.at.
type timerHeap []*Timer

func (h timerHeap) next() (int64, bool) {
	if len(h) == 0 {
		return 0, false
	}
	return h[0].at, true
}

func (h *timerHeap) push(t *Timer) {
	*h = append(*h, t)
	t.index = len(*h)
	h.up(len(*h) - 1)
}

func (h *timerHeap) remove(i int) {
	old := *h
	last := len(old) - 1
	t := old[i]
	if i != last {
		h.place(i, old[last])
	}
	old[last] = nil
	*h = old[:last]
	t.index = 0
	if i != last {
		h.down(i)
		h.up(i)
	}
}

func (h timerHeap) place(i int, t *Timer) {
	h[i] = t
	t.index = i + 1
}

func (h timerHeap) up(i int) {
	t := h[i]
	for i > 0 {
		parent := (i - 1) / 4
		if h[parent].at <= t.at {
			break
		}
		h.place(i, h[parent])
		i = parent
	}
	h.place(i, t)
}

func (h timerHeap) down(i int) {
	t := h[i]
	for {
		first := 4*i + 1
		if first >= len(h) {
			break
		}
		least := first
		for j := first + 1; j < min(first+4, len(h)); j++ {
			if h[j].at < h[least].at {
				least = j
			}
		}
		if h[least].at >= t.at {
			break
		}
		h.place(i, h[least])
		i = least
	}
	h.place(i, t)
}
