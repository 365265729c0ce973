package launcher;

import java.io.IOException;
import java.net.BindException;
import java.net.InetSocketAddress;
import java.net.ServerSocket;
import java.security.SecureRandom;
import java.util.Map;

/** The ports a kernel may listen on, {@code L..U} inclusive; {@code 0..0} leaves the choice to the system. */
final class PortRange {
    private static final int LOWEST = 1024;
    private static final int HIGHEST = 65535;
    private static final SecureRandom RANDOM = new SecureRandom();

    private final int lower;
    private final int upper;

    private PortRange(int lower, int upper) {
        this.lower = lower;
        this.upper = upper;
    }

    /** Reads a range, whose minimum size is MIN_PORT_RANGE_SIZE (or EG_MIN_PORT_RANGE_SIZE, or 1000). */
    static PortRange parse(String text) {
        return parse(text, System.getenv());
    }

    static PortRange parse(String text, Map<String, String> environment) {
        String[] bounds = text.trim().split("\\.\\.", -1);
        if (bounds.length != 2) {
            throw new IllegalArgumentException("Port range must be given as L..U, not '" + text + "'");
        }
        int lower;
        int upper;
        try {
            lower = Integer.parseInt(bounds[0].trim());
            upper = Integer.parseInt(bounds[1].trim());
        } catch (NumberFormatException e) {
            throw new IllegalArgumentException("Port range must be two numbers, not '" + text + "'", e);
        }
        if (lower == 0 && upper == 0) {
            return new PortRange(0, 0);
        }
        if (lower < LOWEST || upper > HIGHEST || lower > upper) {
            throw new IllegalArgumentException(
                    "Port range '" + text + "' must rise and stay within " + LOWEST + ".." + HIGHEST);
        }
        int least = setting(environment, "MIN_PORT_RANGE_SIZE", 1000);
        if (upper - lower < least) {
            throw new IllegalArgumentException(
                    "Port range '" + text + "' holds fewer than the " + least + " ports required");
        }
        return new PortRange(lower, upper);
    }

    /** Binds a free port of the range on every address; retries up to MAX_PORT_RANGE_RETRIES (5) times. */
    ServerSocket bind() throws IOException {
        int tries = lower == 0 ? 1 : 1 + setting(System.getenv(), "MAX_PORT_RANGE_RETRIES", 5);
        for (int i = 0; i < tries; i++) {
            int port = lower == 0 ? 0 : lower + RANDOM.nextInt(upper - lower + 1);
            ServerSocket socket = new ServerSocket();
            try {
                socket.setReuseAddress(true);
                socket.bind(new InetSocketAddress("0.0.0.0", port), 64);
                return socket;
            } catch (BindException e) {
                socket.close();
            }
        }
        throw new IOException("No free port found in " + lower + ".." + upper + " in " + tries + " tries");
    }

    private static int setting(Map<String, String> environment, String name, int otherwise) {
        String value = environment.getOrDefault(name, environment.getOrDefault("EG_" + name, ""));
        try {
            return value.isEmpty() ? otherwise : Integer.parseInt(value);
        } catch (NumberFormatException e) {
            throw new IllegalArgumentException(name + " must be a number, not '" + value + "'", e);
        }
    }
}
