package codec

import (
	"bytes"
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

var errUnsupported = errors.New("not supported, or not in the form that Sluice writes")

// firstAdvisory is the first field number of sluice.v1 that a reader may ignore.
const firstAdvisory = 100

// refuseUnknown returns an error for the first field below firstAdvisory that the
// generated code does not know, at any depth.
func refuseUnknown(m protoreflect.Message) error {
	for b := m.GetUnknown(); len(b) > 0; {
		num, _, n := protowire.ConsumeField(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		if num < firstAdvisory {
			return fmt.Errorf("unknown field %d: written by a newer version", num)
		}
		b = b[n:]
	}
	var err error
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.Message() == nil || fd.IsMap():
		case fd.IsList():
			l := v.List()
			for i := 0; i < l.Len() && err == nil; i++ {
				err = below(fmt.Sprintf("%s[%d]", fd.Name(), i), refuseUnknown(l.Get(i).Message()))
			}
		default:
			err = below(string(fd.Name()), refuseUnknown(v.Message()))
		}
		return err == nil
	})
	return err
}

// unread returns an error for the first field that is set in got and is missing
// or different in again. What only again has is no error: a later version may
// write more than an earlier one did.
func unread(got, again protoreflect.Message) error {
	if b := got.GetUnknown(); len(b) > 0 {
		num, _, _ := protowire.ConsumeTag(b)
		return fmt.Errorf("unknown field %d of %s", num, got.Descriptor().FullName())
	}
	if a, ok := got.Interface().(*anypb.Any); ok {
		return unreadAny(a, again.Interface().(*anypb.Any))
	}
	var err error
	got.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name := string(fd.Name())
		if !again.Has(fd) {
			err = &fieldError{name, errUnsupported}
			return false
		}
		w := again.Get(fd)
		switch {
		case fd.IsMap():
			v.Map().Range(func(k protoreflect.MapKey, e protoreflect.Value) bool {
				field := fmt.Sprintf("%s[%q]", name, k.String())
				if !w.Map().Has(k) {
					err = &fieldError{field, errUnsupported}
				} else {
					err = unreadValue(field, fd.MapValue(), e, w.Map().Get(k))
				}
				return err == nil
			})
		case fd.IsList():
			if v.List().Len() != w.List().Len() {
				err = &fieldError{name, errUnsupported}
			}
			for i := 0; i < v.List().Len() && err == nil; i++ {
				err = unreadValue(fmt.Sprintf("%s[%d]", name, i), fd, v.List().Get(i), w.List().Get(i))
			}
		default:
			err = unreadValue(name, fd, v, w)
		}
		return err == nil
	})
	return err
}

func unreadValue(field string, fd protoreflect.FieldDescriptor, got, again protoreflect.Value) error {
	if fd.Message() != nil {
		return below(field, unread(got.Message(), again.Message()))
	}
	if !got.Equal(again) {
		return &fieldError{field, errUnsupported}
	}
	return nil
}

func unreadAny(got, again *anypb.Any) error {
	if got.TypeUrl != again.TypeUrl {
		return at("type_url", "%w", errUnsupported)
	}
	if bytes.Equal(got.Value, again.Value) {
		return nil
	}
	g, err := got.UnmarshalNew()
	if err != nil {
		return err
	}
	if v, ok := g.(interface{ Validate() error }); ok {
		if err := v.Validate(); err != nil {
			return err
		}
	}
	a, err := again.UnmarshalNew()
	if err != nil {
		return err
	}
	return unread(g.ProtoReflect(), a.ProtoReflect())
}

// pack returns m in an Any, deterministically.
func pack(m proto.Message) (*anypb.Any, error) {
	a := new(anypb.Any)
	return a, anypb.MarshalFrom(a, m, marshal)
}

// unpack reads an Any that must hold an M.
func unpack[M proto.Message](a *anypb.Any, m M) error {
	if a == nil {
		return errUnsupported
	}
	if got, want := a.MessageName(), m.ProtoReflect().Descriptor().FullName(); got != want {
		return fmt.Errorf("is a %q, want a %q", got, want)
	}
	return a.UnmarshalTo(m)
}
