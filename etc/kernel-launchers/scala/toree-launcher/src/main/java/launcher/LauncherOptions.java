package launcher;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;

/**
 * The launcher's command line.
 *
 * <p>An option's value may be absent, follow as the next argument or after {@code =}. The spellings of Enterprise
 * Gateway 1 to 3, {@code --RemoteProcessProxy.kernel-id} and so on, mean the same; the new one takes
 * precedence if both are given. Other arguments are passed to Toree unchanged.
 */
final class LauncherOptions {
    private static final String OLD_PREFIX = "RemoteProcessProxy.";
    private static final Set<String> RENAMED = Set.of(
            "kernel-id", "public-key", "response-address", "port-range", "spark-context-initialization-mode");
    private static final Set<String> OWN = Set.of("profile", "alternate-sigint");
    private static final String SECRET_ON_INPUT = "--launch-secret-on-stdin";

    private final Map<String, String> values = new HashMap<>();
    private final List<String> others = new ArrayList<>();
    private boolean secretOnInput;

    private LauncherOptions() {}

    /** Reads the arguments of {@code main}. */
    static LauncherOptions parse(String[] args) {
        LauncherOptions options = new LauncherOptions();
        for (int i = 0; i < args.length; i++) {
            int equals = args[i].indexOf('=');
            String name = equals < 0 ? args[i] : args[i].substring(0, equals);
            if (name.equals(SECRET_ON_INPUT)) {
                options.secretOnInput = true;
            } else if (!isOwn(name)) {
                options.others.add(args[i]);
            } else if (equals >= 0) {
                options.set(name, args[i].substring(equals + 1));
            } else if (i + 1 < args.length && !args[i + 1].startsWith("--")) {
                options.set(name, args[++i]);
            }
        }
        return options;
    }

    private static boolean isOwn(String name) {
        if (!name.startsWith("--")) {
            return false;
        }
        String bare = name.substring(2);
        return OWN.contains(bare) || RENAMED.contains(bare) || isOldSpelling(bare);
    }

    private static boolean isOldSpelling(String bare) {
        return bare.startsWith(OLD_PREFIX) && RENAMED.contains(bare.substring(OLD_PREFIX.length()));
    }

    private void set(String name, String value) {
        String bare = name.substring(2);
        if (isOldSpelling(bare)) {
            values.putIfAbsent(bare.substring(OLD_PREFIX.length()), value);
        } else {
            values.put(bare, value);
        }
    }

    String kernelId() {
        return required("kernel-id");
    }

    String publicKey() {
        return required("public-key");
    }

    /** The address to report the connection information to; empty for no report. */
    String responseAddress() {
        return values.getOrDefault("response-address", "");
    }

    /** Whether the launch's secret is the line on standard input rather than in the environment. */
    boolean secretOnInput() {
        return secretOnInput;
    }

    PortRange portRange() {
        return PortRange.parse(values.getOrDefault("port-range", "0..0"));
    }

    /** The requested connection file, or null if the launcher chooses one. */
    Path profile() {
        String profile = values.getOrDefault("profile", "");
        return profile.isEmpty() ? null : Path.of(profile);
    }

    /** The signal that interrupts a cell instead of SIGINT, without {@code SIG}; empty means SIGINT. */
    String alternateSigint() {
        return values.getOrDefault("alternate-sigint", "");
    }

    private String required(String name) {
        String value = values.getOrDefault(name, "");
        if (value.isEmpty()) {
            throw new IllegalArgumentException("--" + name + " is required");
        }
        return value;
    }

    /** The arguments for Toree, which reads its ports and key from {@code profile}. */
    List<String> toreeArguments(Path profile) {
        List<String> arguments = new ArrayList<>(List.of("--profile", profile.toString()));
        String mode = values.getOrDefault("spark-context-initialization-mode", "lazy");
        if (mode.equalsIgnoreCase("none")) {
            arguments.add("--nosparkcontext");
        } else {
            arguments.addAll(List.of("--spark-context-initialization-mode", mode.isEmpty() ? "lazy" : mode));
        }
        if (!alternateSigint().isEmpty()) {
            arguments.addAll(List.of("--alternate-sigint", alternateSigint()));
        }
        arguments.addAll(others);
        return arguments;
    }
}
