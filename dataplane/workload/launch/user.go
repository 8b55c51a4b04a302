package launch

import (
	"fmt"
	"os"
	osuser "os/user"
	"strconv"
	"strings"
)

// user is who the command runs as.
type user struct {
	UID, GID int
	Groups   []int
	// Name and Home are empty if no user was asked for or it has no entry.
	Name, Home string
}

func (u *user) environ() (out []string) {
	if u.Home != "" {
		out = append(out, "HOME="+u.Home)
	}
	if u.Name != "" {
		out = append(out, "USER="+u.Name, "LOGNAME="+u.Name)
	}
	return out
}

// maxID is the highest user or group number; the one above means "none".
const maxID = 1<<32 - 2

// lookupUser reads "name", "name:group", "uid" or "uid:gid". A number without an
// entry has the group of its own number, as no other is safe to assume.
func lookupUser(text string) (user, error) {
	if text == "" {
		groups, err := os.Getgroups()
		return user{UID: os.Getuid(), GID: os.Getgid(), Groups: groups}, err
	}
	name, group, hasGroup := strings.Cut(text, ":")
	var u user
	entry, err := osuser.Lookup(name)
	if err != nil {
		id, numErr := parseID(name)
		if numErr != nil {
			return user{}, fmt.Errorf("user %q: neither a name on this machine nor a number", name)
		}
		u.UID, u.GID = id, id
		if entry, err = osuser.LookupId(name); err != nil {
			entry = nil
		}
	}
	if entry != nil {
		u.Name, u.Home = entry.Username, entry.HomeDir
		if u.UID, err = parseID(entry.Uid); err != nil {
			return user{}, fmt.Errorf("user %q: %w", name, err)
		}
		if u.GID, err = parseID(entry.Gid); err != nil {
			return user{}, fmt.Errorf("user %q: %w", name, err)
		}
		ids, err := entry.GroupIds()
		if err != nil {
			return user{}, fmt.Errorf("groups of user %q: %w", name, err)
		}
		for _, text := range ids {
			id, err := parseID(text)
			if err != nil {
				return user{}, fmt.Errorf("groups of user %q: %w", name, err)
			}
			u.Groups = append(u.Groups, id)
		}
	}
	if !hasGroup {
		return u, nil
	}
	// A group that is named replaces the user's own.
	u.Groups = nil
	if entry, err := osuser.LookupGroup(group); err == nil {
		group = entry.Gid
	}
	if u.GID, err = parseID(group); err != nil {
		return user{}, fmt.Errorf("group %q: neither a name on this machine nor a number", group)
	}
	return u, nil
}

func parseID(text string) (int, error) {
	id, err := strconv.ParseUint(text, 10, 32)
	if err != nil || id > maxID {
		return 0, fmt.Errorf("%q is not a user or group number", text)
	}
	return int(id), nil
}
