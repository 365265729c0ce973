package launcher;

import java.util.Map;
import java.util.Set;
import sun.misc.Signal;

/** Turns the signal numbers that the gateway sends into signals this JVM can take. */
final class KernelSignals {
    private static final System.Logger LOG = System.getLogger("launcher");
    private static final int INTERRUPT = 2;
    private static final int KILL = 9;
    private static final int TERMINATE = 15;
    private static final Map<String, Integer> ALTERNATES = Map.of("USR1", 10, "USR2", 12);
    private static final long TERMINATION_MILLIS = 5000;

    private final String interrupt;
    private final Set<Integer> allowed;
    private final Runnable cleanUp;

    /**
     * Knows one kernel's signals.
     *
     * @param alternateSigint name of the signal that interrupts instead of INT; empty for INT
     * @param cleanUp what to do before the JVM is halted, as halting skips its shutdown hooks
     */
    KernelSignals(String alternateSigint, Runnable cleanUp) {
        this.interrupt = alternateSigint.isEmpty() ? "INT" : alternateSigint;
        this.allowed = alternateSigint.isEmpty()
                ? Set.of(INTERRUPT, KILL, TERMINATE)
                : Set.of(INTERRUPT, KILL, TERMINATE, ALTERNATES.getOrDefault(alternateSigint, INTERRUPT + 100));
        this.cleanUp = cleanUp;
        if (alternateSigint.isEmpty()) {
            LOG.log(
                    System.Logger.Level.WARNING,
                    "No --alternate-sigint: interrupts use SIGINT, which a JVM started in the background ignores");
        } else {
            // Until Toree installs its own handler, an early interrupt would end the JVM.
            Signal.handle(new Signal(interrupt), signal -> {});
        }
    }

    /** Delivers a signal; answers whether it is one the gateway may send. 0 only asks whether the kernel lives. */
    boolean deliver(int number) {
        if (number == 0) {
            return true;
        }
        if (!allowed.contains(number)) {
            return false;
        }
        if (number == KILL) {
            haltLater();
        }
        Signal.raise(new Signal(number == KILL || number == TERMINATE ? "TERM" : interrupt));
        return true;
    }

    /** TERM lets Spark stop its executors; a JVM that does not end by it is halted. */
    private void haltLater() {
        Thread watchdog = new Thread(
                () -> {
                    try {
                        Thread.sleep(TERMINATION_MILLIS);
                    } catch (InterruptedException e) {
                        Thread.currentThread().interrupt();
                    }
                    cleanUp.run();
                    Runtime.getRuntime().halt(128 + KILL);
                },
                "launcher-halt");
        watchdog.setDaemon(true);
        watchdog.start();
    }
}
