package codec

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/sluice-mesh/sluice/mesh"
)

// nameCORS is Envoy's filter, and the key of its configuration in a route.
const nameCORS = "envoy.filters.http.cors"

// anyHost is what a "*" in an origin's host is as an expression.
const anyHost = "[^/:]+"

// encodeCORS writes a CORS filter as the typed_per_filter_config of Envoy's. A
// preflight of an origin that is not allowed is answered, not forwarded.
func encodeCORS(c *mesh.CORS) (map[string]*anypb.Any, error) {
	if c == nil {
		return nil, nil
	}
	m := &corsv3.CorsPolicy{
		AllowMethods: strings.Join(c.AllowMethods, ","), AllowHeaders: strings.Join(c.AllowHeaders, ","),
		ExposeHeaders: strings.Join(c.ExposeHeaders, ","), MaxAge: strconv.FormatUint(uint64(c.MaxAge), 10),
		AllowCredentials: wrapperspb.Bool(c.AllowCredentials), ForwardNotMatchingPreflights: wrapperspb.Bool(false),
	}
	for i, list := range [][]string{c.AllowMethods, c.AllowHeaders, c.ExposeHeaders} {
		if slices.ContainsFunc(list, func(s string) bool { return s == "" || strings.ContainsAny(s, ", \t\r\n") }) {
			return nil, at([]string{"AllowMethods", "AllowHeaders", "ExposeHeaders"}[i], "%q has what is no name", list)
		}
	}
	for i, o := range c.AllowOrigins {
		host, ok := strings.CutPrefix(o, "http")
		host = strings.TrimPrefix(strings.TrimPrefix(host, "s"), "://")
		if o != "*" && (!ok || host == "" || strings.ContainsAny(host, "/\\[]^ ") || o != strings.ToLower(o)) {
			return nil, at(fmt.Sprintf("AllowOrigins[%d]", i), "%q is not an origin", o)
		}
		match := exactly(o)
		switch {
		case o == "*":
			match = expression(".*")
		case strings.Contains(o, "*"):
			match = expression(strings.ReplaceAll(regexp.QuoteMeta(o), `\*`, anyHost))
		}
		m.AllowOriginStringMatch = append(m.AllowOriginStringMatch, match)
	}
	packed, err := pack(m)
	return map[string]*anypb.Any{nameCORS: packed}, err
}

func expression(e string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: e}}}
}

func decodeCORS(config map[string]*anypb.Any) (*mesh.CORS, error) {
	if config[nameCORS] == nil {
		return nil, nil // another filter's is found by unread
	}
	m := new(corsv3.CorsPolicy)
	if err := unpack(config[nameCORS], m); err != nil {
		return nil, err
	}
	age, err := strconv.ParseUint(m.GetMaxAge(), 10, 32)
	if err != nil {
		return nil, at("max_age", "%q is not a number of seconds", m.GetMaxAge())
	}
	c := &mesh.CORS{
		AllowMethods: split(m.GetAllowMethods()), AllowHeaders: split(m.GetAllowHeaders()), ExposeHeaders: split(m.GetExposeHeaders()),
		AllowCredentials: m.GetAllowCredentials().GetValue(), MaxAge: uint32(age),
	}
	for _, o := range m.GetAllowOriginStringMatch() {
		switch e := o.GetSafeRegex().GetRegex(); e {
		case "":
			c.AllowOrigins = append(c.AllowOrigins, o.GetExact())
		case ".*":
			c.AllowOrigins = append(c.AllowOrigins, "*")
		default:
			c.AllowOrigins = append(c.AllowOrigins, strings.ReplaceAll(strings.ReplaceAll(e, anyHost, "*"), `\`, ""))
		}
	}
	return c, nil
}

func split(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}
