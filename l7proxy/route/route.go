package route

import (
	"github.com/sluice-mesh/sluice/l7proxy/message"
	"github.com/sluice-mesh/sluice/mesh"
)

// Tables are the route tables of a node.
type Tables struct {
	// Prepare, if set before the first Apply, is called for each rule before it is
	// published: the place to fill Rule.Metrics.
	Prepare func(*Rule)
}

// NewTables returns tables that know nothing.
func NewTables() *Tables { return &Tables{} }

// Apply takes over the virtual hosts of a delta and ignores everything else. Only
// one goroutine may call it at a time; readers may be at work meanwhile.
func (t *Tables) Apply(d mesh.Delta) {}

// Validate reports why a virtual host cannot be used, and names the field.
func Validate(v *mesh.VirtualHost) error { return nil }

// Request is what a rule looks at. It is reusable memory of one exchange: keep one
// and fill it anew, so that matching need not allocate.
type Request struct {
	Method    []byte
	Authority []byte        // as it came; may have a port and upper case
	Path      []byte        // normalised by NormalizePath, with its query
	Head      *message.Head // for matches on header fields; nil: there are none

	buf []byte
}

// Host is a compiled virtual host. It is immutable.
type Host struct {
	*mesh.VirtualHost
}

// Rule is a compiled rule. It is immutable.
type Rule struct {
	*mesh.Rule
	// Metrics is for the caller: only Tables.Prepare may set it.
	Metrics any
}

// Match returns the rule that the request takes, and whether any virtual host of
// the table serves its authority. The rule is nil if there is none.
func (t *Tables) Match(table string, req *Request) (rule *Rule, host bool) { return nil, false }

// Has reports whether any virtual host of the table is known.
func (t *Tables) Has(table string) bool { return false }

// Explanation says how a request was matched.
type Explanation struct {
	Table string `json:"table"`
	// Hostname is the virtual host's; empty if none serves the authority.
	Hostname string `json:"hostname,omitempty"`
	// Rules of the virtual host in the order of precedence.
	Rules []RuleExplanation `json:"rules,omitempty"`
	// Winner is the index in Rules of the rule taken, or -1.
	Winner int `json:"winner"`
}

// RuleExplanation says what became of one rule.
type RuleExplanation struct {
	Route     string `json:"route"` // "HTTPRoute/namespace/name"
	RuleIndex int    `json:"rule"`
	RuleName  string `json:"rule_name,omitempty"`
	Match     int    `json:"match"`
	// Matched says that the rule would take the request; one before it may have.
	Matched bool `json:"matched"`
	// Why says which condition failed, or which rule came first.
	Why string `json:"why,omitempty"`
}

// Explain matches as Match does and says of each rule why it was not taken.
func (t *Tables) Explain(table string, req *Request) Explanation { return Explanation{Winner: -1} }
