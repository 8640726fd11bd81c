"""Looking for headers and libraries by file, never by package list. Used by the repository rules."""

def triple(rctx):
    """The multiarch folder of this machine, "x86_64-linux-gnu" or "aarch64-linux-gnu"."""
    return rctx.execute(["uname", "-m"]).stdout.strip() + "-linux-gnu"

def exists(rctx, path):
    return rctx.path(path).exists

def first_file(rctx, folders, name):
    """The first folder that holds `name`, or None."""
    for folder in folders:
        if exists(rctx, folder + "/" + name):
            return folder
    return None

def shared_object(rctx, folder, stem):
    """Name of "libx.so" or the lowest "libx.so.N" in a folder: wheels ship the numbered one only."""
    if not exists(rctx, folder):
        return None
    names = [entry.basename for entry in rctx.path(folder).readdir()]
    names = sorted([n for n in names if n == stem or n.startswith(stem + ".")])
    return names[0] if names else None

def defined(text, name):
    """The value that a header's text gives to a macro by `#define NAME value`, else ""."""
    for line in text.splitlines():
        words = [w for w in line.replace("\t", " ").replace("# ", "#").split(" ") if w]
        if len(words) >= 3 and words[0] == "#define" and words[1] == name:
            return " ".join(words[2:])
    return ""
