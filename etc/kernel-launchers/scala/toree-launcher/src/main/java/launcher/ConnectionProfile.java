package launcher;

import com.fasterxml.jackson.core.type.TypeReference;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.net.ServerSocket;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermission;
import java.nio.file.attribute.PosixFilePermissions;
import java.util.ArrayDeque;
import java.util.Deque;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.UUID;

/** The connection file ("profile") that tells Toree its ports and key. */
final class ConnectionProfile {
    private static final List<String> PORTS =
            List.of("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port");
    private static final Set<PosixFilePermission> OWNER_ONLY = PosixFilePermissions.fromString("rw-------");
    private static final ObjectMapper JSON = new ObjectMapper();

    private final Path path;
    private final Map<String, Object> content;

    private ConnectionProfile(Path path, Map<String, Object> content) {
        this.path = path;
        this.content = content;
    }

    /** Uses the requested file if it exists, and otherwise writes one with ports in {@code range} and a new key. */
    static ConnectionProfile open(Path wanted, PortRange range) throws IOException {
        if (wanted != null && Files.exists(wanted)) {
            return new ConnectionProfile(wanted, JSON.readValue(wanted.toFile(), new TypeReference<>() {}));
        }
        Path path = wanted != null
                ? wanted
                : Files.createTempDirectory("jupyter-kernel").resolve("kernel.json");
        Map<String, Object> content = new LinkedHashMap<>(freePorts(range));
        content.put("ip", "0.0.0.0");
        content.put("key", UUID.randomUUID().toString());
        content.put("transport", "tcp");
        content.put("signature_scheme", "hmac-sha256");
        content.put("kernel_name", "Apache Toree Scala");
        Files.createFile(path, PosixFilePermissions.asFileAttribute(OWNER_ONLY));
        Files.write(path, JSON.writeValueAsBytes(content));
        return new ConnectionProfile(path, content);
    }

    /** Picks five different ports; holds all of them until the last is found. */
    private static Map<String, Object> freePorts(PortRange range) throws IOException {
        Deque<ServerSocket> held = new ArrayDeque<>();
        try {
            Map<String, Object> ports = new LinkedHashMap<>();
            for (String name : PORTS) {
                held.push(range.bind());
                ports.put(name, held.peek().getLocalPort());
            }
            return ports;
        } finally {
            for (ServerSocket socket : held) {
                socket.close();
            }
        }
    }

    Path path() {
        return path;
    }

    /** The report for the gateway: the file's content and the address of this launcher. */
    Map<String, Object> report(String kernelId, int commPort, boolean hasSecret) {
        Map<String, Object> report = new LinkedHashMap<>(content);
        report.put("kernel_id", kernelId);
        report.put("comm_port", commPort);
        if (hasSecret) {
            report.put("comm_version", 2);
        }
        report.put("pid", ProcessHandle.current().pid());
        Long group = processGroup();
        if (group != null) {
            report.put("pgid", group);
        }
        return report;
    }

    /** Reads the process group from Linux's process table; null elsewhere. */
    private static Long processGroup() {
        try {
            String stat = Files.readString(Path.of("/proc/self/stat"));
            // The command name, in parentheses, may itself contain blanks; state, parent and group follow it.
            return Long.valueOf(stat.substring(stat.lastIndexOf(')') + 2).split(" ")[2]);
        } catch (IOException e) {
            return null;
        }
    }

    /** Removes the file, and its directory if it was created for the file. */
    void delete() {
        try {
            Files.deleteIfExists(path);
            Path directory = path.toAbsolutePath().getParent();
            if (directory.getFileName() != null && directory.getFileName().toString().startsWith("jupyter-kernel")) {
                Files.deleteIfExists(directory);
            }
        } catch (IOException e) {
            System.getLogger("launcher").log(System.Logger.Level.DEBUG, "Cannot delete {0}", path);
        }
    }
}
