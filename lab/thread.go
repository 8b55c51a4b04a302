package lab

import (
	"runtime"
	"sync"
)

var (
	threadOnce sync.Once
	threadWork = make(chan func())
)

// onThread runs f on one thread of the process that lives as long as the process.
// Children are started there, because their parent death signal comes when the
// thread that started them ends (prctl(2), PR_SET_PDEATHSIG), and f may change the
// thread's network namespace if it changes it back: nothing else runs there.
func onThread(f func() error) error {
	threadOnce.Do(func() {
		go func() {
			runtime.LockOSThread()
			for work := range threadWork {
				work()
			}
		}()
	})
	done := make(chan error)
	threadWork <- func() { done <- f() }
	return <-done
}
